"""When a live migration leaves precopy, and for what.

The postcopy series has `libxl__save_live_migration_precopy_policy` for this, with the conditions
that `xc_domain_save` applied by itself: few pages are dirty, or enough rounds have been made. The
rule is in `ipc_schema.channel.precopy_rule`; this module has what a controller adds to it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import (
    PAGE_BYTES,
    Decision,
    PrecopyLimits,
    PrecopyRounds,
)


class MemoryStrategy(Enum):
    """LIBXL_LM_MEMORY_*: how memory that is still dirty after precopy reaches the destination."""

    DEFAULT = "stop-and-copy"
    """Stop the guest and copy it."""
    POSTCOPY = "postcopy"
    """Let the guest run at the destination and fetch it."""


class PrecopyDecisions:
    """The answers to one helper's `precopy_policy`."""

    def __init__(
        self, limits: PrecopyLimits, strategy: MemoryStrategy, clock: Callable[[], float]
    ) -> None:
        """`clock` is in seconds."""
        self._strategy = strategy
        self._written = 0
        self.rounds = PrecopyRounds(limits, self._sent, clock)

    def _sent(self) -> int:
        """The bytes in the stream, as far as this side knows: the pages the helper has written."""
        return self._written * PAGE_BYTES

    def ask(self, iteration: int, total_written: int, dirty_count: int) -> Decision:
        """Decide after `iteration` rounds and `total_written` pages, with `dirty_count` pages known
        to be dirty (-1: unknown, within a round)."""
        self._written = total_written
        decision = self.rounds.ask(iteration, dirty_count)
        if self.rounds.wanted is not None:
            return decision
        postcopy = self._strategy is MemoryStrategy.POSTCOPY
        if decision.policy is PrecopyPolicy.STOP_AND_COPY and postcopy:
            return decision._replace(policy=PrecopyPolicy.POSTCOPY)
        return decision


class PrecopyProgress:
    """Whether a helper makes progress with precopy: libxc asks as long as the answer is
    CONTINUE_PRECOPY, and a broken helper may ask for ever."""

    def __init__(self, stall: float) -> None:
        """`stall`: the seconds for which it may ask without having written a page."""
        self._stall = stall
        self._ended: PrecopyPolicy | None = None
        self._at: tuple[int, int] | None = None
        self._since = 0.0

    def objection(self, iteration: int, total_written: int, now: float) -> str:
        """Why a question, asked at `now` in seconds, must not be answered; "" if it may be."""
        if self._ended is not None:
            ended = self._ended.name
            return f"the helper continues precopy, though it was told to end it ({ended})"
        if (iteration, total_written) != self._at:
            self._at, self._since = (iteration, total_written), now
        elif now - self._since >= self._stall:
            return f"the helper has asked about precopy for {self._stall:g} s and sent no page"
        return ""

    def answered(self, answer: PrecopyPolicy) -> None:
        if answer is not PrecopyPolicy.CONTINUE_PRECOPY:
            self._ended = answer
