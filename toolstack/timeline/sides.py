"""The sides of operations: which lines of a machine's trace belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from xen_save_helper.ipc_schema.channel import helper_arguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags
from xen_save_helper.ipc_schema.trace_events import Writer
from xen_save_helper.toolstack.timeline.trace_lines import ClockName, Line
from xen_save_helper.toolstack.timeline.witnesses import sightings

_INCOMING: Final = "--incoming"
"""What a receiver adds to a guest's name (rules.handshake.INCOMING)."""
_CONTROLLERS: Final = frozenset({Writer.CONTROLLER.value, Writer.RECEIVER.value})
_NEAR: Final = 5.0
"""Seconds between what two processes of one operation write, at most, if nothing else tells."""


@dataclass
class Side:
    """One side of an operation: the lines of its controller and helper, of a page server or pager,
    and of the link of a fault run. `saves`: it is the source."""

    saves: bool
    lines: list[Line] = field(default_factory=list)

    @property
    def clock(self) -> ClockName:
        return self.lines[0].clock

    @property
    def start(self) -> float:
        return self.lines[0].t

    @property
    def end(self) -> float:
        return self.lines[-1].t

    def named(self, *events: str) -> Iterator[Line]:
        return (line for line in self.lines if line.event in events)

    def value(self, name: str, *events: str) -> Any:
        """The first value of a field in these events; None if there is none."""
        found = (line.get(name) for line in self.named(*events))
        return next((value for value in found if value is not None), None)

    @property
    def controlled(self) -> bool:
        """Whether a controller of ours took part."""
        return any(line.process in _CONTROLLERS for line in self.lines)

    @property
    def guest(self) -> str | None:
        told = next((line.guest for line in self.lines if line.guest), None)
        name = told or self.value("name", "domain_created")
        return name.removesuffix(_INCOMING) if isinstance(name, str) else None

    @property
    def domid(self) -> int | None:
        for line in self.lines:
            value = line.get("domid")
            if isinstance(value, int) and not isinstance(value, bool):
                return value
            if line.event == "start" and (request := _request(line)) is not None:
                return request.domid
        return None

    @property
    def stream_bytes(self) -> object:
        """The stream's size, by which the two sides of a migration recognise each other."""
        told = [
            line.get("bytes") for line in self.named("callback") if line.get("name") == "statistics"
        ]
        return told[-1] if told else None

    @property
    def realtime(self) -> float | None:
        """The time of day at 0 of its clock."""
        for line in self.named("clock"):
            value = line.get("realtime")
            if isinstance(value, int | float):
                return float(value) - line.t
        return None

    @property
    def migrates(self) -> bool:
        """Whether it may talk to another side: a restore does not know where its stream is from."""
        if not self.saves or any(True for _ in self.named("migrate", "handshake")):
            return True
        if self.controlled:
            return self.value("live", "save") is True
        request = next(filter(None, map(_request, self.named("start"))), None)
        return request is None or bool(request.xcflags & XCFlags.LIVE)

    @cached_property
    def sightings(self) -> dict[str, float]:
        """When it saw what both sides see."""
        return sightings(self.lines, source=self.saves)


def sides_in(lines: list[Line]) -> Iterator[Side]:
    """The sides in the trace of one machine."""
    lines.sort(key=lambda line: line.t)
    processes = [_Process(pid, own) for pid, own in _by_process(lines)]
    helpers = [one for one in processes if one.is_helper]
    sides: list[Side] = []
    for process in processes:
        if not process.controls:
            continue
        for own in process.operations():
            ours = [
                helper
                for line in own
                if line.event == "helper_started"
                and (helper := _started(helpers, line)) is not None
            ]
            saves = _saves(own, ours)
            sides.append(Side(saves, _sorted(own, *(one.lines for one in ours))))
    for helper in helpers:
        sides.append(Side(helper.saves is not False, list(helper.lines)))
    for process in processes:
        if not process.is_helper and not process.controls:
            _add_to_nearest(sides, process.lines)
    yield from (side for side in sides if side.lines)


class _Process:
    """The lines of one process."""

    def __init__(self, pid: int, lines: list[Line]) -> None:
        self.pid = pid
        self.lines = lines
        self.process = lines[-1].process

    @property
    def is_helper(self) -> bool:
        return self.process == Writer.HELPER.value

    @property
    def beside(self) -> int | None:
        """The process that a controller has started, if this one does its work."""
        return next((line.get("started") for line in self.lines if line.event == "outlives"), None)

    @property
    def controls(self) -> bool:
        return self.process in _CONTROLLERS

    @property
    def saves(self) -> bool | None:
        for line in self.lines:
            if line.event == "start":
                if isinstance(operation := line.get("operation"), str):
                    return operation == Operation.SAVE.value
                request = _request(line)
                return None if request is None else request.operation is Operation.SAVE
        return None

    def operations(self) -> Iterator[list[Line]]:
        """The lines of each operation of a controller: by guest, and one after the other."""
        guests = {line.guest for line in self.lines} - {None}
        if len(guests) < 2:
            yield from _split(self.lines)
            return
        clock = [line for line in self.lines if line.event == "clock"]
        for guest in sorted(str(one) for one in guests):
            own = [line for line in self.lines if line.guest == guest]
            for one in _split(own):
                yield _sorted(clock, one)


def _started(helpers: list[_Process], line: Line) -> _Process | None:
    """Take out of the list the helper that a controller started; its pid may have come again."""
    known = [one for one in helpers if line.get("helper") in {one.pid, one.beside}]
    if not known:
        return None
    found = min(known, key=lambda one: abs(one.lines[0].t - line.t))
    helpers.remove(found)
    return found


def _split(lines: list[Line]) -> Iterator[list[Line]]:
    """Split where an operation begins after another one has ended."""
    clock = [line for line in lines if line.event == "clock"]
    current: list[Line] = []
    over = False
    for line in lines:
        if over and line.event in {"migrate", "save", "domain_created", "handshake"}:
            yield current
            current, over = [*clock], False
        current.append(line)
        over = over or line.event in {"migrated", "received"}
        if line.event in {"save_ended", "restore_ended"}:
            over = not any(one.event.startswith(("migrate", "handshake")) for one in current)
    if current:
        yield current


def _by_process(lines: Iterable[Line]) -> Iterator[tuple[int, list[Line]]]:
    """The lines of each process: a pid may come again in a long trace."""
    current: dict[int, list[Line]] = {}
    for line in lines:
        own = current.get(line.pid)
        if own is not None and _is_first(line, own):
            yield line.pid, current.pop(line.pid)
        current.setdefault(line.pid, []).append(line)
    yield from current.items()


def _is_first(line: Line, before: list[Line]) -> bool:
    """Whether it is the first line of another process than those `before`, of the same pid."""
    if before[0].event == "clock":
        return line.event == "clock"
    # A trace that does not tell its clock.
    libxls = line.event == "start" and line.get("arguments") is not None
    return line.event in {"clock", "hello"} or libxls


def _saves(lines: list[Line], helpers: list[_Process]) -> bool:
    for one in helpers:
        if one.saves is not None:
            return one.saves
    if any(line.process == Writer.RECEIVER.value for line in lines):
        return False
    return not any(line.event in {"domain_created", "stream_read"} for line in lines)


def _add_to_nearest(sides: list[Side], lines: list[Line]) -> None:
    """Give a page server's or a link's lines to the side that they belong to."""
    domid = next((line.get("domid") for line in lines if line.get("domid") is not None), None)
    known = [
        side
        for side in sides
        if side.saves
        and side.start - _NEAR <= lines[-1].t
        and lines[0].t <= side.end + _NEAR
        and (domid is None or side.domid in {None, domid})
    ]
    if known:
        nearest = min(known, key=lambda side: abs(side.start - lines[0].t))
        nearest.lines[:] = _sorted(nearest.lines, lines)


def _sorted(*several: Iterable[Line]) -> list[Line]:
    return sorted((line for lines in several for line in lines), key=lambda line: line.t)


def _request(line: Line) -> HelperRequest | None:
    """What libxl asks a helper for; None if these are not arguments of libxl's."""
    arguments = line.get("arguments")
    if not isinstance(arguments, list):
        return None
    try:
        return helper_arguments.parse([str(one) for one in arguments]).request
    except ValueError:
        return None
