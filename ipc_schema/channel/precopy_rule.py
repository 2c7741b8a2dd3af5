"""When precopy ends: the rule of our controller, and of whoever runs the drop-in.

libxenguest stops a guest after 5 rounds or with fewer than 50 dirty pages. Here the limits can be
chosen, a downtime can be aimed at, and a migration that does not converge can be given up, with the
guest running on at the source.

`decide` is the whole rule; `PrecopyRounds` measures, by the caller's clock, and asks it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy

PAGE_OCTETS: Final = 4096 + 8
"""What a page costs in the stream: its contents, and its pfn in the list."""

_MEASURABLE: Final = 1 << 20
"""Octets of the shortest round that tells a rate: a shorter one may end in a socket's buffer."""


class PrecopyLimits(NamedTuple):
    """When precopy ends. What is None was not asked for.

    `max_iterations`: stop and copy after so many rounds. `dirty_threshold`: with at most so many
    dirty pages. `max_downtime_ms`: as soon as what is dirty can be sent in that time.
    `abort_after`: give up after so many rounds that came to neither; it stands in the place of
    `max_iterations`.
    """

    max_iterations: int | None = None
    dirty_threshold: int | None = None
    max_downtime_ms: int | None = None
    abort_after: int | None = None


DEFAULT_MAX_ITERATIONS: Final = 5
DEFAULT_DIRTY_THRESHOLD: Final = 49
"""libxenguest's own: fewer than 50."""


class Decision(NamedTuple):
    policy: PrecopyPolicy
    why: str


def decide(
    limits: PrecopyLimits, iteration: int, dirty_count: int, octets_per_second: float | None
) -> Decision:
    """The answer to precopy_policy: `iteration` rounds are done, `dirty_count` pages are dirty
    (-1: not known yet, between a round and the look at what was dirtied meanwhile). The rate is
    that of the rounds so far, None before the first."""
    threshold = limits.dirty_threshold
    if threshold is None:
        threshold = DEFAULT_DIRTY_THRESHOLD
    if 0 <= dirty_count <= threshold:
        return Decision(
            PrecopyPolicy.STOP_AND_COPY, f"{dirty_count} dirty pages, at most {threshold} wanted"
        )
    downtime = _downtime_ms(dirty_count, octets_per_second)
    if limits.max_downtime_ms is not None and downtime is not None:
        told = f"{dirty_count} dirty pages take {downtime:.0f} ms"
        if downtime <= limits.max_downtime_ms:
            return Decision(
                PrecopyPolicy.STOP_AND_COPY, f"{told}, at most {limits.max_downtime_ms} wanted"
            )
    if limits.abort_after is not None:
        # Given up only once it is known that this round did not do either.
        if iteration >= limits.abort_after and dirty_count >= 0:
            return Decision(
                PrecopyPolicy.ABORT,
                f"{dirty_count} pages are dirty after {iteration} rounds, the last allowed",
            )
    else:
        most = limits.max_iterations
        if most is None:
            most = DEFAULT_MAX_ITERATIONS
        if iteration >= most:
            return Decision(PrecopyPolicy.STOP_AND_COPY, f"{iteration} rounds, at most {most}")
    dirty = "not known yet" if dirty_count < 0 else f"{dirty_count} pages"
    return Decision(PrecopyPolicy.CONTINUE_PRECOPY, f"{iteration} rounds, dirty: {dirty}")


def _downtime_ms(dirty_count: int, octets_per_second: float | None) -> float | None:
    if dirty_count < 0 or not octets_per_second:
        return None
    return dirty_count * PAGE_OCTETS * 1000 / octets_per_second


class PrecopyRounds:
    """Follows the rounds of one save: an engine asks before each round, with what is dirty, and
    without that after it or while it goes on.

    `octets` counts what the stream has taken, `clock` is in seconds.
    """

    def __init__(
        self, limits: PrecopyLimits, octets: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self._limits = limits
        self._octets = octets
        self._clock = clock
        self._began: tuple[float, int] | None = None
        self._rate: float | None = None

    @property
    def octets_per_second(self) -> float | None:
        """Of the last round that was long enough to tell; None before."""
        return self._rate

    def ask(self, iteration: int, dirty_count: int) -> Decision:
        if dirty_count < 0:
            self._measure()
        decision = decide(self._limits, iteration, dirty_count, self._rate)
        # Not each engine asks before its first round.
        if dirty_count >= 0 or self._began is None:
            self._began = (self._clock(), self._octets())
        return decision

    def _measure(self) -> None:
        if self._began is None:
            return
        seconds = self._clock() - self._began[0]
        octets = self._octets() - self._began[1]
        if seconds > 0 and octets >= _MEASURABLE:
            self._rate = octets / seconds
