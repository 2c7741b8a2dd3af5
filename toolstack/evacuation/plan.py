"""The plan of an evacuation: which guest goes where, in which order, and what cannot move and why.

Pure: `survey` looks at the hosts, `run` carries the plan out. Bin packing has no quick exact
answer, so two simple rules are tried: guests spread over the destinations, and, if that leaves some
without a place, guests packed tightly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

NOMINAL_RATE: Final = 125_000_000
"""Bytes a second of a link whose rate nobody has told, 1 Gbit/s; it only orders the guests."""


@dataclass(frozen=True)
class Guest:
    """A guest at the source. `memory` is in bytes; `dirty_rate` the bytes a second that it writes
    to, None if not known; `obstacle` is why it cannot move at all, "" if it can."""

    name: str
    domid: int
    memory: int
    dirty_rate: float | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Place:
    """A destination. `free` is the memory for new guests, in bytes, None if it has no bound or is
    not known before the receiver answers; `objections` says, by guest, why one cannot go there for
    another reason."""

    name: str
    free: int | None = None
    objections: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Move:
    """`seconds` is how long it is expected to take, for the order."""

    guest: Guest
    place: str
    seconds: float


@dataclass(frozen=True)
class Stay:
    guest: Guest
    reason: str


class Rooms:
    """The room at the destinations, by what was given away of it so far."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = {place.name: place for place in places}
        self._taken = dict.fromkeys(self._places, 0)

    def taken(self, place: str) -> int:
        """The bytes that were given away there."""
        return self._taken[place]

    def left(self, place: str) -> int | None:
        """The bytes that are left there; None if that is not known."""
        free = self._places[place].free
        return None if free is None else free - self._taken[place]

    def take(self, guest: Guest, place: str) -> None:
        """Give room away. Raises ValueError if there is none."""
        if reason := self.why_not(guest, place):
            raise ValueError(f"{guest.name} at {place}: {reason}")
        self._taken[place] += guest.memory

    def give_back(self, guest: Guest, place: str) -> None:
        self._taken[place] -= guest.memory

    def why_not(self, guest: Guest, place: str) -> str:
        """Why the guest cannot go there; "" if it may fit."""
        if objection := self._places[place].objections.get(guest.name):
            return objection
        left = self.left(place)
        if left is None or guest.memory <= left:
            return ""
        return f"no room for {_mib(guest.memory)}: {_mib(left)} are left"

    def choices(self, guest: Guest, tried: Iterable[str] = ()) -> list[str]:
        """The destinations at which the guest may fit, but for those `tried`."""
        excluded = set(tried)
        return [
            name for name in self._places if name not in excluded and not self.why_not(guest, name)
        ]

    def roomiest(self, guest: Guest, tried: Iterable[str] = ()) -> str | None:
        """The one of `choices` that takes the least so far; None if there is none."""
        return min(self.choices(guest, tried), key=self.taken, default=None)

    def tightest(self, guest: Guest) -> str | None:
        """The one of `choices` that has the least left, those with a known size first."""

        def room(place: str) -> tuple[bool, int]:
            left = self.left(place)
            return left is None, self.taken(place) if left is None else left

        return min(self.choices(guest), key=room, default=None)

    def why_nowhere(self, guest: Guest) -> str:
        """Why the guest can go to none of the destinations."""
        return "; ".join(f"{name}: {self.why_not(guest, name)}" for name in self._places)


@dataclass(frozen=True)
class Plan:
    """`moves` in the order in which they begin; `stays`: the guests that cannot move. Each guest is
    in one of them, once."""

    places: tuple[Place, ...]
    moves: tuple[Move, ...]
    stays: tuple[Stay, ...]

    def rooms(self) -> Rooms:
        """The room at the destinations once all moves have been made."""
        rooms = Rooms(self.places)
        for move in self.moves:
            rooms.take(move.guest, move.place)
        return rooms


def expected_seconds(guest: Guest, rate: float, max_rounds: int) -> float:
    """How long a live migration takes at `rate` bytes a second: each round of precopy, and the
    stop-and-copy after them, sends what was written during the one before."""
    dirty = guest.dirty_rate or 0.0
    total = left = float(guest.memory)
    for _ in range(min(max_rounds, 100)):
        left = min(float(guest.memory), dirty * left / rate) if left else 0.0
        total += left
    return total / rate


def make_plan(
    guests: Sequence[Guest],
    places: Sequence[Place],
    *,
    bandwidth: int = 0,
    jobs: int = 1,
    max_rounds: int = 5,
    order: Sequence[str] = (),
) -> Plan:
    """Plan the evacuation of `guests` to `places`, whose names are unique.

    The smallest expected time comes first, after those named in `order`; it is told for a guest's
    part of `bandwidth` (bytes a second, 0 for no limit) if `jobs` are on their way at once. No
    destination whose memory is known is given more than that. The same arguments make the same
    plan. Raises ValueError for an order that names no guest.
    """
    names = {guest.name for guest in guests}
    for name in order:
        if name not in names:
            raise ValueError(f"order: there is no guest {name!r} among those to move")
    able = [guest for guest in guests if not guest.obstacle]
    able.sort(key=lambda guest: (-guest.memory, guest.name))
    assigned, rooms = _assign(able, places, Rooms.roomiest)
    if len(assigned) < len(able):
        tight, tight_rooms = _assign(able, places, Rooms.tightest)
        if len(tight) > len(assigned):
            assigned, rooms = tight, tight_rooms
    rate = bandwidth / max(1, min(jobs, len(assigned))) or NOMINAL_RATE
    rank = {name: index for index, name in reversed([*enumerate(order)])}
    moves = [
        Move(guest, assigned[guest.name], expected_seconds(guest, rate, max_rounds))
        for guest in able
        if guest.name in assigned
    ]
    moves.sort(
        key=lambda move: (
            rank.get(move.guest.name, len(rank)),
            move.seconds,
            move.guest.memory,
            move.guest.name,
        )
    )
    stays = [
        Stay(guest, guest.obstacle or rooms.why_nowhere(guest))
        for guest in sorted(guests, key=lambda guest: guest.name)
        if guest.name not in assigned
    ]
    return Plan(tuple(places), tuple(moves), tuple(stays))


def _assign(
    guests: Sequence[Guest],
    places: Sequence[Place],
    choose: Callable[[Rooms, Guest], str | None],
) -> tuple[dict[str, str], Rooms]:
    rooms = Rooms(places)
    assigned = {}
    for guest in guests:
        place = choose(rooms, guest)
        if place is not None:
            rooms.take(guest, place)
            assigned[guest.name] = place
    return assigned, rooms


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.6g} MiB"
