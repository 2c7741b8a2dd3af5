"""The cells that a campaign runs: every point with every action, in every mode and at each side.

They are made from the tables of ipc_schema, with the arguments that are worth trying. The same
selection always gives the same cells in the same order.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import cycle
from random import Random
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, PrecopyPolicy
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.actions import Action, ActionKind, Value, admitted, sides
from xen_save_helper.ipc_schema.faults.plan import FIRST, Fault, Plan, Times
from xen_save_helper.ipc_schema.faults.points import ASKS, POINTS, Kind, Point, Side, Who
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE
from xen_save_helper.ipc_schema.streams.xl_handshake import (
    BANNER,
    READY,
    RECEIVING,
    REPORT,
    SYNC,
    VERDICT,
    VERDICT_SIZE,
)
from xen_save_helper.toolstack.campaign import reach
from xen_save_helper.toolstack.campaign.evidence import Mode

MODES: Final = (Mode.SAVE, Mode.LIVE, Mode.POSTCOPY, Mode.LINK)
"""The modes of the whole matrix. Stop-and-copy passes no point that live does not."""


class GuestKind(NamedTuple):
    """What a run's guest is like: its `memory` in bytes, and the `workload` of a simulated
    guest."""

    memory: int
    workload: str


_FAULTING: Final = GuestKind(16 << 20, "write-heavy")
"""A guest that touches pages after the transition before they arrive by themselves."""


_WHEN_IT_FAULTS: Final = frozenset({"POSTCOPY_FAULT", ASKS})
"""What points belong to that are passed if it does."""


class Cell(NamedTuple):
    """One run. `aim` is the last fault of the plan, for which the run is made; what must go wrong
    first (`reach.PRIMERS`) comes before it."""

    mode: Mode
    plan: Plan

    @property
    def aim(self) -> Fault:
        return self.plan.faults[-1]

    @property
    def seeded(self) -> Plan:
        """The plan; if it has no seed, one made from its text, so that each run of the matrix is
        repeatable."""
        seed = zlib.crc32(str(self.plan).encode()) if self.plan.seed is None else self.plan.seed
        return self.plan._replace(seed=seed)

    @property
    def key(self) -> tuple[str, str]:
        """The mode and the faults without the seed, which identify a cell."""
        return self.mode.value, str(self.plan._replace(seed=None))

    def __str__(self) -> str:
        return f"{self.mode.value}: {self.plan}"


def guest_for(plan: Plan, usual: GuestKind) -> GuestKind:
    """The guest with which the points of a plan are passed: the usual one, unless they need one
    that touches pages which have not arrived."""
    if any(fault.point.of in _WHEN_IT_FAULTS for fault in plan.faults):
        return GuestKind(max(usual.memory, _FAULTING.memory), _FAULTING.workload)
    return usual


_LITTLE: Final = 0.3
"""Seconds that exceed no limit."""
_A_WHILE: Final = 2.5
"""Seconds that a process may be stopped, which only the limits of the streams exceed."""
_LONG: Final = 6.0
"""Seconds beyond the limit of a suspend (`run.FAULT_LIMITS`)."""

_ARGUMENTS: Final[Mapping[ActionKind, Sequence[Value | None]]] = {
    actions.EXIT: (0, 3),
    actions.DIE: tuple(actions.DEATHS.values()),
    actions.STOP: (None, _A_WHILE),
    actions.DELAY: (_LITTLE,),
    actions.SIGNAL: ("TERM",),
    actions.FAIL: ("EIO",),
    actions.FLIP: (None,),
    actions.STALL: (None, _LITTLE),
    actions.TRICKLE: (4 << 20,),
    actions.SHORT_WRITES: (1000,),
    actions.LATE: (_LITTLE, _LONG),
}
"""Arguments of the actions that take one, except `answer`."""

_STRANGE_ANSWER: Final = 77
"""An answer that no callback knows."""

_PLACES: Final[Mapping[tuple[Who, str], Sequence[int]]] = {
    (Who.HELPER, "stream"): (17, 300_007),  # in the header; in a page
    (Who.HELPER, "back"): (3,),
    (Who.HELPER, "page"): (5,),
    (Who.LINK, "stream"): (0, 100, 300_007),  # in the xl header, libxl's and libxc's records
    (Who.LINK, "back"): (0, 25),  # in the banner; what follows it has points of its own
    # In the greeting and the keys' exchange of a connection, and among pages.
    (Who.TUNNEL, "stream"): (5, 200, 100_003),
    (Who.TUNNEL, "back"): (5, 200, 700),
}

_WITHOUT_PAGES: Final[Mapping[tuple[Who, str], Sequence[int]]] = {
    (Who.HELPER, "stream"): (17, 9_007),
    (Who.LINK, "stream"): (0, 100, 9_007),
}
"""Places in a stream without the guest's memory, which has a link of its own."""


def arguments(point: Point, kind: ActionKind) -> Sequence[Value | None]:
    """The arguments with which `kind` is tried at `point`."""
    if kind is actions.ANSWER:
        return _answers(point.of)
    if kind.argument is None:
        return (None,)
    return _OF_LINK.get((point.who, kind), _ARGUMENTS[kind])


_OF_LINK: Final[Mapping[tuple[Who, ActionKind], Sequence[Value | None]]] = {
    # The quick one first, which `short` takes.
    (Who.TUNNEL, actions.STALL): (_LITTLE, None),
    (Who.PAGE_SERVER, actions.STOP): (_A_WHILE, None),
    (Who.PAGER, actions.STOP): (_A_WHILE, None),
}


def _answers(message: str) -> Sequence[int]:
    if message == "precopy_policy":
        return (*map(int, PrecopyPolicy), _STRANGE_ANSWER)
    refusal = CATALOGUE[message].refusal
    assert refusal is not None
    return (refusal, _STRANGE_ANSWER)


def cells(modes: Iterable[Mode] = MODES, glob: str = "*") -> list[Cell]:
    """All cells of `modes` at the points that `glob` matches (see `matches`)."""
    return [
        Cell(mode, plan)
        for mode in modes
        for point in POINTS.values()
        if matches(point, glob)
        for kind in admitted(point)
        for plan in _plans(mode, point, kind)
    ]


def matches(point: Point, glob: str) -> bool:
    """Whether `glob` (as of a shell) matches the point's name, or the name with its `who/`."""
    return fnmatchcase(point.name, glob) or fnmatchcase(f"{point.who.value}/{point.name}", glob)


def _plans(mode: Mode, point: Point, kind: ActionKind) -> Iterator[Plan]:
    for side in _sides(mode, point, kind):
        for at in _places(mode, point):
            for value in arguments(point, kind):
                yield Plan(reach.primed(Fault(point, Action(kind, value), side, at)))


def _places(mode: Mode, point: Point) -> Sequence[int | None]:
    of = (point.who, point.name)
    if mode is Mode.LINK and of in _WITHOUT_PAGES:
        return _WITHOUT_PAGES[of]
    return _PLACES.get(of, (None,))


def _sides(mode: Mode, point: Point, kind: ActionKind) -> list[Side | None]:
    """The sides in the order of `Side`; None alone for the link."""
    where: list[Side | None] = [side for side in Side if side in sides(point, kind)]
    return [side for side in where or [None] if mode in reach.modes(point, side)]


# A part that touches everything


def short(of: Sequence[Cell]) -> list[Cell]:
    """A part of these cells, in their order, that touches all that they do (see `_touches`): a
    greedy cover."""
    names: dict[Hashable, int] = {}
    touched = [sum(1 << names.setdefault(one, len(names)) for one in _touches(cell)) for cell in of]
    missing = (1 << len(names)) - 1
    chosen: set[int] = set()
    used: Counter[object] = Counter()

    def worth(index: int) -> tuple[int, int, int]:
        """Among cells that touch equally much, prefer an action and a mode that are rare so far."""
        cell = of[index]
        return (
            (touched[index] & missing).bit_count(),
            -used[cell.aim.action],
            -used[cell.mode],
        )

    while missing:
        best = max(range(len(of)), key=worth)
        chosen.add(best)
        missing &= ~touched[best]
        used.update((of[best].aim.action, of[best].mode))
    return [of[index] for index in sorted(chosen)]


def _touches(cell: Cell) -> set[Hashable]:
    """The point of a cell, its action at this kind of point and in this mode, and the mode's
    side."""
    point, action, side, *_ = cell.aim
    done = str(action) if action.kind is actions.DIE else action.kind.name
    at_side: Hashable = ("side", cell.mode, side, point.who)
    at_point: Hashable = ("point", point.who, point.name)
    by_action: Hashable = ("action", point.who, point.kind, done)
    if cell.mode is Mode.LINK:
        # Its runs take longer: they touch what no other mode has.
        if point.who in _OF_LINK_ALONE:
            return {at_side, at_point, by_action}
        alone = reach.modes(point, side) == {Mode.LINK}
        return {at_side, at_point} if alone else {at_side}
    return {at_side, at_point, by_action, ("mode", cell.mode, action.kind.name)}


_OF_LINK_ALONE: Final = frozenset({Who.PAGE_SERVER, Who.PAGER, Who.TUNNEL})


# Chance


def at_random(number: int, seed: int, modes: Sequence[Mode] = MODES, glob: str = "*") -> list[Cell]:
    """`number` plans of two faults, each with its own seed. The n-th is the same whatever the
    number; raises ValueError if `glob` leaves no two cells in a mode."""
    by_mode = {mode: _by_point(cells([mode], glob)) for mode in modes}
    for mode, points in by_mode.items():
        if sum(map(len, points)) < 2:
            raise ValueError(f"{glob!r} leaves no two faults in the mode {mode.value}")
    return [
        _pair(Random(f"{seed}/{index}"), mode, by_mode[mode])
        for index, mode in zip(range(number), cycle(modes), strict=False)
    ]


def _by_point(of: Iterable[Cell]) -> list[list[Fault]]:
    found: dict[tuple[Who, str], list[Fault]] = {}
    for cell in of:
        found.setdefault((cell.aim.point.who, cell.aim.point.name), []).append(cell.aim)
    return list(found.values())


def _pair(random: Random, mode: Mode, points: Sequence[Sequence[Fault]]) -> Cell:
    """Draw a point first, or points with many actions would be nearly all that is drawn."""
    faults: list[Fault] = []
    while len(faults) < 2:
        fault = random.choice(random.choice(points))
        if all(fault[:4] != other[:4] for other in faults):
            faults.append(
                fault._replace(at=_place(random, mode, fault), times=_times(random, fault))
            )
    return Cell(mode, Plan(tuple(faults), random.getrandbits(32)))


def _place(random: Random, mode: Mode, fault: Fault) -> int | None:
    if fault.at is None:
        return None
    length = _SHORT.get((fault.point.who, fault.point.name))
    if length is not None:
        return random.choice((fault.at, random.randrange(length)))
    of = (fault.point.who, fault.point.name)
    far = _FAR_WITHOUT_PAGES if mode is Mode.LINK and of in _WITHOUT_PAGES else _FAR
    return random.choice((fault.at, random.randrange(100), random.randrange(far)))


_FAR: Final = 500_000
"""Bytes that every stream has; a pfn beyond the guest's memory is never passed."""
_FAR_WITHOUT_PAGES: Final = 10_000
_SHORT: Final[Mapping[tuple[Who, str], int]] = {
    (Who.TUNNEL, "back"): 700,
    # At least the record that says that all pages have arrived.
    (Who.HELPER, "back"): HEADER_SIZE,
    (Who.LINK, "back"): len(BANNER.data + VERDICT.data + RECEIVING.data)
    + VERDICT_SIZE
    + min(len(READY.data + REPORT.data), HEADER_SIZE + len(SYNC.data)),
}
"""Bytes that go back in each run."""


def _times(random: Random, fault: Fault) -> Times:
    if random.random() < 0.6 or fault.point.kind not in {Kind.MESSAGE, Kind.RECORD}:
        return FIRST
    once = Times(random.choice((2, 3)))
    if fault.action.kind in actions.WAITS:
        return once  # each time would take minutes
    return random.choice((once, Times(2, onwards=True), Times(onwards=True), Times(percent=30)))
