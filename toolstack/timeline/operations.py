"""The operations in traces: a save, a restore, or both sides of a migration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from xen_save_helper.toolstack.timeline.clocks import Offset, bounds
from xen_save_helper.toolstack.timeline.sides import Side, sides_in
from xen_save_helper.toolstack.timeline.trace_lines import ClockName, Line, TraceFile
from xen_save_helper.toolstack.timeline.witnesses import seen_by_both

_APART: Final = 60.0
"""Seconds by which the times of day of two machines may differ, at most."""
_ROUNDED: Final = 2e-6
"""Seconds by which two times of one clock may seem to be in the wrong order: `t` is rounded."""
_CONTRADICTION: Final = 1.0
"""Seconds by which the clocks of two machines may run apart in a migration, at most."""


@dataclass(frozen=True)
class Operation:
    """A save, a restore, or the two sides of a migration. At least one side is there."""

    source: Side | None
    destination: Side | None

    @property
    def sides(self) -> tuple[Side, ...]:
        return tuple(side for side in (self.source, self.destination) if side is not None)

    @property
    def guest(self) -> str | None:
        return next((side.guest for side in self.sides if side.guest), None)

    @property
    def domid(self) -> int | None:
        """Of the guest at the source, if that is known."""
        return next((side.domid for side in self.sides if side.domid is not None), None)

    @property
    def migration(self) -> bool:
        """Whether it is a migration, though perhaps only one side of it is known."""
        if len(self.sides) > 1:
            return True
        return any(True for _ in self.sides[0].named("migrate", "handshake"))

    @property
    def kind(self) -> str:
        if self.migration:
            return "migration"
        return "save" if self.source is not None else "restore"

    @property
    def name(self) -> str:
        """What it is called: the guest's name, or else its domid."""
        if self.guest is not None:
            return self.guest
        return "an unknown guest" if self.domid is None else f"domain {self.domid}"

    @property
    def realtime(self) -> float | None:
        """The time of day at which it began."""
        base = self.sides[0].realtime
        return None if base is None else base + self.sides[0].start

    def has_pid(self, pid: int) -> bool:
        return any(line.pid == pid for side in self.sides for line in side.lines)


def find_operations(files: Sequence[TraceFile]) -> list[Operation]:
    """The operations in these files, in the order in which they began, as far as that is known."""
    lines_of: dict[ClockName, list[Line]] = {}
    for file in files:
        for line in file.lines:
            lines_of.setdefault(line.clock, []).append(line)
    sides = [side for lines in lines_of.values() for side in sides_in(lines)]
    return sorted(_paired(sides), key=lambda one: (one.realtime or 0.0, one.sides[0].start))


def _paired(sides: list[Side]) -> Iterator[Operation]:
    """Match the two sides of each migration, the best matches first."""
    sources = [side for side in sides if side.saves and side.migrates]
    destinations = [side for side in sides if not side.saves and side.migrates]
    matches = sorted(
        (likeness, at, to)
        for at, source in enumerate(sources)
        for to, destination in enumerate(destinations)
        if (likeness := _likeness(source, destination)) is not None
    )
    other: dict[int, int] = {}
    for _, at, to in matches:
        if at not in other and to not in other.values():
            other[at] = to
    for at, source in enumerate(sources):
        yield Operation(source, destinations[other[at]] if at in other else None)
    for to, destination in enumerate(destinations):
        if to not in other.values():
            yield Operation(None, destination)
    for side in sides:
        if not side.migrates:
            yield Operation(side, None) if side.saves else Operation(None, side)


def _likeness(source: Side, destination: Side) -> tuple[int, float] | None:
    """Sorts pairs, the likeliest first; None for two that are not of one migration."""
    names = {source.guest, destination.guest} - {None}
    sizes = {source.stream_bytes, destination.stream_bytes} - {None}
    if len(names) == 2 or len(sizes) == 2 or not _together(source, destination):
        return None
    unknown = (None in {source.guest, destination.guest}) + (len(sizes) == 0)
    return unknown, abs(destination.start - _guess(source, destination) - source.start)


def _together(source: Side, destination: Side) -> bool:
    """Whether both can have gone on at the same time, and seen the same."""
    offset = offset_of(source, destination)
    if source.clock == destination.clock:
        if not offset.low - _ROUNDED <= 0.0 <= offset.high + _ROUNDED:
            return False
        slack = 0.0
    else:
        wall = wall_offset(source, destination)
        if wall is None:
            return offset.low - offset.high <= _CONTRADICTION
        if not offset.low - _APART <= wall <= offset.high + _APART:
            return False
        slack = _APART
    guess = _guess(source, destination)
    return (
        destination.start - guess <= source.end + slack
        and source.start <= destination.end - guess + slack
    )


def _guess(source: Side, destination: Side) -> float:
    """The offset of the destination's clock, more or less."""
    if source.clock == destination.clock:
        return 0.0
    offset = offset_of(source, destination)
    if offset.bounded:
        return offset.middle
    wall = wall_offset(source, destination)
    # Unknown: as if both had begun at once.
    return destination.start - source.start if wall is None else wall


def offset_of(source: Side, destination: Side) -> Offset:
    """The offset of the destination's clock, by what both saw."""
    return bounds(seen_by_both(source.sightings, destination.sightings))


def wall_offset(source: Side, destination: Side) -> float | None:
    """The same by the times of day."""
    if source.realtime is None or destination.realtime is None:
        return None
    return source.realtime - destination.realtime
