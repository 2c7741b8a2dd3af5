"""When a live migration leaves precopy, and for what.

The rule is that of `libxl__save_live_migration_precopy_policy` in the postcopy series, which asks
the same as `xc_domain_save` did by itself: few pages are dirty, or enough rounds have been made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

from ipc_schema.messages import INTEGER_RANGES, Kind, PrecopyPolicy
from toolstack import arguments


class MemoryStrategy(Enum):
    """LIBXL_LM_MEMORY_*: how the memory that is still dirty after precopy gets over."""

    DEFAULT = "stop-and-copy"
    """Stop the guest and copy it."""
    POSTCOPY = "postcopy"
    """Let the guest run at the destination and fetch it."""


@dataclass(frozen=True)
class PrecopyLimits:
    """Precopy ends with at most `dirty_threshold` dirty pages, or after `max_rounds` rounds
    (0: the guest's memory is not sent at all before the guest stops).

    Raises TypeError and ValueError for what is no such figure.
    """

    dirty_threshold: int = 50
    max_rounds: int = 5

    def __post_init__(self) -> None:
        _, most = INTEGER_RANGES[Kind.ULONG]
        for name in ("dirty_threshold", "max_rounds"):
            arguments.whole_number(name, getattr(self, name), 0, most)


DEFAULT_PRECOPY: Final = PrecopyLimits()


def precopy_policy(
    limits: PrecopyLimits, strategy: MemoryStrategy, *, iteration: int, dirty_count: int
) -> PrecopyPolicy:
    """The answer to `precopy_policy`: `iteration` rounds are done, `dirty_count` pages are known
    to be dirty (-1: not known, within a round)."""
    few_dirty = 0 <= dirty_count <= limits.dirty_threshold
    if not few_dirty and iteration < limits.max_rounds:
        return PrecopyPolicy.CONTINUE_PRECOPY
    if strategy is MemoryStrategy.POSTCOPY:
        return PrecopyPolicy.POSTCOPY
    return PrecopyPolicy.STOP_AND_COPY


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
