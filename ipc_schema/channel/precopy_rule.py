"""When precopy ends: the one rule, for the controller, our own engine and the drop-in.

Xen has it twice, with different comparisons: libxl ends precopy with at most 50 dirty pages,
libxenguest on its own with fewer than 50. Here there is one comparison, and the figures are data:
LIBXL_PRECOPY and LIBXENGUEST_PRECOPY. They can be chosen, a downtime can be aimed at, and a
migration that does not converge can be given up, with the guest running on at the source.

`decide` is the whole rule; `PrecopyRounds` measures, by the caller's clock, and applies it.
"""

from __future__ import annotations

from collections.abc import Callable

from xen_save_helper.ipc_schema.channel.field_checks import whole_number
from xen_save_helper.ipc_schema.channel.messages import INTEGER_RANGES, Kind, PrecopyPolicy
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

PAGE_BYTES: Final = 4096 + 8
"""Bytes of the stream for each page: its contents, and its pfn in the list."""

_MEASURABLE: Final = 1 << 20
"""Bytes that a round must have sent to tell a rate: fewer may all fit in a socket's buffer."""


class _Figures(NamedTuple):
    dirty_threshold: int
    max_rounds: int
    max_downtime_ms: int | None
    abort_after: int | None


class PrecopyLimits(_Figures):
    """Precopy ends with at most `dirty_threshold` dirty pages, as soon as the dirty pages take no
    longer than `max_downtime_ms` at the measured rate, or after `max_rounds` rounds (0: no memory
    is sent before the guest stops). `abort_after` replaces `max_rounds`: after so many rounds that
    reached neither, the migration is given up.

    Raises TypeError and ValueError for a bad figure (`abort_after` is 1 or more).
    """

    __slots__ = ()

    def __new__(
        cls,
        dirty_threshold: int = 50,
        max_rounds: int = 5,
        max_downtime_ms: int | None = None,
        abort_after: int | None = None,
    ) -> PrecopyLimits:
        _, most = INTEGER_RANGES[Kind.ULONG]
        whole_number("dirty_threshold", dirty_threshold, 0, most)
        whole_number("max_rounds", max_rounds, 0, most)
        if max_downtime_ms is not None:
            whole_number("max_downtime_ms", max_downtime_ms, 0, most)
        if abort_after is not None:
            whole_number("abort_after", abort_after, 1, most)
        return super().__new__(cls, dirty_threshold, max_rounds, max_downtime_ms, abort_after)


LIBXL_PRECOPY: Final = PrecopyLimits()
"""libxl__save_live_migration_precopy_policy's figures, our controller's defaults."""
LIBXENGUEST_PRECOPY: Final = PrecopyLimits(dirty_threshold=49)
"""simple_precopy_policy's figures, a helper's defaults if its controller has no policy."""


class Decision(NamedTuple):
    policy: PrecopyPolicy
    why: str


def decide(
    limits: PrecopyLimits, iteration: int, dirty_count: int, bytes_per_second: float | None
) -> Decision:
    """The answer to precopy_policy: `iteration` rounds are done, `dirty_count` pages are dirty
    (-1: not known yet, after a round but before its dirty bitmap was read). `bytes_per_second` is
    the rate of the rounds so far, None before the first."""
    if 0 <= dirty_count <= limits.dirty_threshold:
        return Decision(
            PrecopyPolicy.STOP_AND_COPY,
            f"{dirty_count} dirty pages, at most {limits.dirty_threshold} wanted",
        )
    downtime = _downtime_ms(dirty_count, bytes_per_second)
    if limits.max_downtime_ms is not None and downtime is not None:
        told = f"{dirty_count} dirty pages take {downtime:.0f} ms"
        if downtime <= limits.max_downtime_ms:
            return Decision(
                PrecopyPolicy.STOP_AND_COPY, f"{told}, at most {limits.max_downtime_ms} wanted"
            )
    if limits.abort_after is not None:
        # Not before it is known that this round was not enough either.
        if iteration >= limits.abort_after and dirty_count >= 0:
            return Decision(
                PrecopyPolicy.ABORT,
                f"{dirty_count} pages are dirty after {iteration} rounds, the last allowed",
            )
    elif iteration >= limits.max_rounds:
        return Decision(
            PrecopyPolicy.STOP_AND_COPY, f"{iteration} rounds, at most {limits.max_rounds}"
        )
    dirty = "not known yet" if dirty_count < 0 else f"{dirty_count} pages"
    return Decision(PrecopyPolicy.CONTINUE_PRECOPY, f"{iteration} rounds, dirty: {dirty}")


def _downtime_ms(dirty_count: int, bytes_per_second: float | None) -> float | None:
    if dirty_count < 0 or not bytes_per_second:
        return None
    return dirty_count * PAGE_BYTES * 1000 / bytes_per_second


class PrecopyRounds:
    """Follows the rounds of one save. An engine asks before each round, with the dirty count, and
    during or after it, without (-1).

    `sent` counts the bytes that the stream has taken, `clock` is in seconds. `limits` may be
    changed meanwhile; `wanted` ends precopy in this way at the next question; `held`: not now, for
    the guest would stand still for as long as sending is paused. `ended` once it has ended.
    """

    def __init__(
        self, limits: PrecopyLimits, sent: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self.limits = limits
        self.wanted: PrecopyPolicy | None = None
        self.held = False
        self.ended = False
        self._sent = sent
        self._clock = clock
        self._began: tuple[float, int] | None = None
        self._rate: float | None = None

    @property
    def bytes_per_second(self) -> float | None:
        """The rate of the last round that was long enough to tell; None before."""
        return self._rate

    def ask(self, iteration: int, dirty_count: int) -> Decision:
        if dirty_count < 0:
            self._measure()
        if self.held:
            decision = Decision(PrecopyPolicy.CONTINUE_PRECOPY, "sending is paused")
        elif self.wanted is None:
            decision = decide(self.limits, iteration, dirty_count, self._rate)
        else:
            decision = Decision(self.wanted, "asked for while it ran")
        self.ended = decision.policy is not PrecopyPolicy.CONTINUE_PRECOPY
        # Not every engine asks before its first round.
        if dirty_count >= 0 or self._began is None:
            self._began = (self._clock(), self._sent())
        return decision

    def _measure(self) -> None:
        if self._began is None:
            return
        seconds = self._clock() - self._began[0]
        sent = self._sent() - self._began[1]
        if seconds > 0 and sent >= _MEASURABLE:
            self._rate = sent / seconds
