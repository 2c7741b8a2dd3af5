"""When a live migration leaves precopy, and for what.

The postcopy series has `libxl__save_live_migration_precopy_policy` for it, which asks the same as
`xc_domain_save` did by itself: few pages are dirty, or enough rounds have been made. The rule is
`ipc_schema.channel.precopy_rule`'s, with this one's figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.channel import precopy_rule
from xen_save_helper.ipc_schema.channel.messages import INTEGER_RANGES, Kind, PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import Decision
from xen_save_helper.toolstack.rules import arguments


class MemoryStrategy(Enum):
    """LIBXL_LM_MEMORY_*: how the memory that is still dirty after precopy gets over."""

    DEFAULT = "stop-and-copy"
    """Stop the guest and copy it."""
    POSTCOPY = "postcopy"
    """Let the guest run at the destination and fetch it."""


@dataclass(frozen=True)
class PrecopyLimits:
    """Precopy ends with at most `dirty_threshold` dirty pages, as soon as what is dirty takes no
    longer than `max_downtime_ms` at the rate that was measured, or after `max_rounds` rounds
    (0: the guest's memory is not sent at all before the guest stops). `abort_after` stands in the
    place of `max_rounds`: after so many rounds that came to neither, the migration is given up.

    Raises TypeError and ValueError for what is no such figure (`abort_after` is 1 or more).
    """

    dirty_threshold: int = 50
    max_rounds: int = 5
    max_downtime_ms: int | None = None
    abort_after: int | None = None

    def __post_init__(self) -> None:
        _, most = INTEGER_RANGES[Kind.ULONG]
        for name in ("dirty_threshold", "max_rounds"):
            arguments.whole_number(name, getattr(self, name), 0, most)
        for name, least in (("max_downtime_ms", 0), ("abort_after", 1)):
            if getattr(self, name) is not None:
                arguments.whole_number(name, getattr(self, name), least, most)


DEFAULT_PRECOPY: Final = PrecopyLimits()


class PrecopyDecisions:
    """The answers to one helper's `precopy_policy`."""

    def __init__(
        self, limits: PrecopyLimits, strategy: MemoryStrategy, clock: Callable[[], float]
    ) -> None:
        """`clock` is in seconds."""
        self._strategy = strategy
        self._written = 0
        rule = precopy_rule.PrecopyLimits(
            max_iterations=limits.max_rounds,
            dirty_threshold=limits.dirty_threshold,
            max_downtime_ms=limits.max_downtime_ms,
            abort_after=limits.abort_after,
        )
        self._rounds = precopy_rule.PrecopyRounds(rule, self._octets, clock)

    def _octets(self) -> int:
        """The helper writes the stream; what is known here is the pages that it has written."""
        return self._written * precopy_rule.PAGE_OCTETS

    def ask(self, iteration: int, total_written: int, dirty_count: int) -> Decision:
        """`iteration` rounds are done, `total_written` pages are written, `dirty_count` are known
        to be dirty (-1: not known, within a round)."""
        self._written = total_written
        decision = self._rounds.ask(iteration, dirty_count)
        postcopy = self._strategy is MemoryStrategy.POSTCOPY
        if decision.policy is PrecopyPolicy.STOP_AND_COPY and postcopy:
            return decision._replace(policy=PrecopyPolicy.POSTCOPY)
        return decision


class PrecopyProgress:
    """Whether a helper's questions lead to an end of precopy: libxc asks for as long as it is
    answered with CONTINUE_PRECOPY, and so may one that is out of order, for ever."""

    def __init__(self, stall: float) -> None:
        """`stall`: for how many seconds it may ask without having written a page."""
        self._stall = stall
        self._ended: PrecopyPolicy | None = None
        self._at: tuple[int, int] | None = None
        self._since = 0.0

    def objection(self, iteration: int, total_written: int, now: float) -> str:
        """Why a question, asked at `now` in seconds, must not be answered; "" where it may."""
        if self._ended is not None:
            ended = self._ended.name
            return f"the helper goes on with precopy, though it was told to end it ({ended})"
        if (iteration, total_written) != self._at:
            self._at, self._since = (iteration, total_written), now
        elif now - self._since >= self._stall:
            return f"the helper asks for {self._stall:g} s how precopy goes on, and sends no page"
        return ""

    def answered(self, answer: PrecopyPolicy) -> None:
        if answer is not PrecopyPolicy.CONTINUE_PRECOPY:
            self._ended = answer
