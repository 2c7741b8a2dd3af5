"""The lane of each event of a trace in a timeline of both sides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.points import SIDES, Side

LANES: Final = (
    "source controller",
    "source helper",
    "link",
    "destination helper",
    "destination controller",
)
"""The lanes, from the source to the destination."""

_CONTROLLER: Final = {Side.SOURCE: 0, Side.DESTINATION: 4}
_HELPER: Final = {Side.SOURCE: 1, Side.DESTINATION: 3}
_LINK: Final = 2


def lanes(events: Sequence[Mapping[str, Any]]) -> list[int]:
    """The lane of each event, by who started whom: the destination's controller is the receiver, or
    the one whose helper restores."""
    sides = _sides(events)
    controller_of = {event["helper"]: event["pid"] for event in _named(events, "helper_started")}
    found = []
    for event in events:
        pid = event["pid"]
        if event["process"] == "link":
            found.append(_LINK)
        elif pid in controller_of:
            found.append(_HELPER[sides[controller_of[pid]]])
        elif event["process"] == "helper":
            # Its controller ended before it could tell that it had started the helper.
            found.append(_HELPER[sides.get(pid, Side.SOURCE)])
        else:
            found.append(_CONTROLLER[sides[pid]])
    return found


def _sides(events: Sequence[Mapping[str, Any]]) -> dict[int, Side]:
    """The side of each controller, and of the helpers that tell it."""
    sides: dict[int, Side] = {}
    for event in _named(events, "start"):
        if event["process"] == "helper":
            sides[event["pid"]] = SIDES[Operation(event["operation"])]
    started = {event["pid"]: event["helper"] for event in _named(events, "helper_started")}
    before = False
    for event in events:
        pid = event["pid"]
        if pid in sides or event["process"] in {"helper", "link"}:
            continue
        if event["process"] == "receiver":
            sides[pid] = Side.DESTINATION
        else:
            # A save comes before its restore, which may never have started a helper.
            told = sides.get(started.get(pid, -1))
            sides[pid] = told or (Side.DESTINATION if before else Side.SOURCE)
            before = True
    return sides


def _named(events: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    return [event for event in events if event["event"] == name]
