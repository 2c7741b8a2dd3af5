"""Aligns the clocks of two machines by what both saw.

A message is said before it is heard. If the other machine's clock is `offset` ahead of ours, then

- a message that we said at `t` and they heard at `u` shows that `offset <= u - t`,
- one that they said at `u` and we heard at `t` shows that `offset >= u - t`.

All messages together leave an interval, in which the true offset lies if it does not change
meanwhile. Two clocks drift apart by some microseconds a second; over a long migration the bounds
may then contradict each other, which is said.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

WALL_CLOCK_ERROR: Final = 1.0
"""Seconds by which the times of day of two machines are taken to differ at most, if nothing else is
known: NTP does far better where it runs."""


class Seen(NamedTuple):
    """A message, or another thing that happened at one side before the other side saw it. `ours`
    and `theirs` are seconds of the respective clock; `outward`: it went from us to them."""

    what: str
    ours: float
    theirs: float
    outward: bool


class Offset(NamedTuple):
    """How far their clock is ahead of ours, in seconds: between `low` and `high`, either of which
    may be infinite. `lowest` and `highest` name what bounds it."""

    low: float
    high: float
    lowest: str = ""
    highest: str = ""

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    @property
    def contradictory(self) -> bool:
        return self.low > self.high

    @property
    def middle(self) -> float:
        """Raises ValueError if it is not bounded."""
        if not self.bounded:
            raise ValueError("an offset without bounds has no middle")
        return (self.low + self.high) / 2

    @property
    def error(self) -> float:
        """Seconds by which `middle` may be wrong."""
        return abs(self.high - self.low) / 2


SAME: Final = Offset(0.0, 0.0)
"""Of a clock to itself."""


class Alignment(NamedTuple):
    """`offset` is to be subtracted from their times; it may be wrong by `error` seconds (infinite
    if that is unknown). `how` says for people how it was found, and `sure` whether the error is
    known from what both saw alone."""

    offset: float
    error: float
    how: str
    sure: bool


def bounds(seen: Iterable[Seen]) -> Offset:
    """The interval that all of them leave."""
    offset = Offset(-math.inf, math.inf)
    for one in seen:
        difference = one.theirs - one.ours
        if one.outward and difference < offset.high:
            offset = offset._replace(high=difference, highest=one.what)
        elif not one.outward and difference > offset.low:
            offset = offset._replace(low=difference, lowest=one.what)
    return offset


def align(offset: Offset, wall: float | None) -> Alignment:
    """The best offset. `wall` is what the times of day say it is, if they are known: it decides
    only what `offset` leaves open."""
    if offset.bounded:
        how = f"between {offset.lowest} and {offset.highest}"
        if offset.contradictory:
            how = (
                f"{offset.lowest} and {offset.highest} contradict each other by "
                f"{(offset.low - offset.high) * 1e3:.3g} ms: a clock ran faster than the other"
            )
        return Alignment(offset.middle, offset.error, how, sure=True)
    if wall is not None:
        within = min(max(wall, offset.low), offset.high)
        how = "by the times of day, which both machines must have right"
        one = offset.highest or offset.lowest
        if one:
            how += f"; only one bound is known, from {one}"
        return Alignment(within, max(WALL_CLOCK_ERROR, abs(within - wall)), how, sure=False)
    one_sided = [bound for bound in (offset.low, offset.high) if math.isfinite(bound)]
    if one_sided:
        text = offset.highest or offset.lowest
        return Alignment(
            one_sided[0], math.inf, f"as if {text} had taken no time: nothing came back", sure=False
        )
    return Alignment(0.0, math.inf, "not at all: nothing in them was seen by both", sure=False)
