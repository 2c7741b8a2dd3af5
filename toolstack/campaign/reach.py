"""Which points a run passes, by its mode and the side, what must go wrong first, and why the others
are not passed.

A new row in the tables of ipc_schema counts as passed in every mode until it says otherwise here: a
point that is not passed shows as a fault that did not fire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.faults.plan import Fault, parse
from xen_save_helper.ipc_schema.faults.points import Kind, Point, Side, Who
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage
from xen_save_helper.toolstack.campaign.evidence import Mode

_CHECKPOINTED: Final = "a checkpointed stream's (Remus, COLO)"
_PV: Final = "a PV guest's"
_DEBUG: Final = "of a migration with SUSPEND_DEBUG (`migrate --debug`), which no mode has"

NOT_PASSED: Final[Mapping[str, str]] = {
    "postcopy": _CHECKPOINTED,
    "checkpoint": _CHECKPOINTED,
    "wait_checkpoint": _CHECKPOINTED,
    "CHECKPOINT": _CHECKPOINTED,
    "CHECKPOINT_END": _CHECKPOINTED,
    "CHECKPOINT_STATE": _CHECKPOINTED,
    "X86_PV_INFO": _PV,
    "X86_PV_P2M_FRAMES": _PV,
    "X86_PV_VCPU_BASIC": _PV,
    "X86_PV_VCPU_EXTENDED": _PV,
    "X86_PV_VCPU_XSAVE": _PV,
    "X86_PV_VCPU_MSRS": _PV,
    "SHARED_INFO": _PV,
    "TOOLSTACK": "of senders before Xen 4.14",
    "SPARSE": "of a sender with --sparse",
    "VERIFY": _DEBUG,
    Phase.VERIFY.value: _DEBUG,
    Stage.VERIFY.value: _DEBUG,
}
"""Messages, records and phases that no run passes, and why."""

_ALL: Final = frozenset(Mode)
_MIGRATIONS: Final = _ALL - {Mode.SAVE}
_POSTCOPY: Final = frozenset({Mode.POSTCOPY})
"""The last pages come over the migration's own stream."""
_LINK: Final = frozenset({Mode.LINK})
_PAGES_LAST: Final = _POSTCOPY | _LINK
_NEVER: Final[frozenset[Mode]] = frozenset()

_OF_MESSAGES: Final[Mapping[str, frozenset[Mode]]] = {
    "precopy_policy": _MIGRATIONS,
    "postcopy_transition": _POSTCOPY,
    "page_server": _LINK,
}
"""A message that is not listed is in every mode, as in the tables that follow."""

_OF_MESSAGES_AT_DESTINATION: Final[Mapping[str, frozenset[Mode]]] = {
    "suspend": _NEVER,  # COLO's
    "statistics": _ALL - _LINK,  # a pager goes on counting when nobody listens any more
    # The answer to an async callback; a restore only has postcopy_transition.
    "async_callback_done": _POSTCOPY,
}

_OF_HANDSHAKE: Final[Mapping[str, frozenset[Mode]]] = {
    "receiving": _MIGRATIONS - _POSTCOPY,
    "ready": _MIGRATIONS - _POSTCOPY,
    "go": _MIGRATIONS - _POSTCOPY,
    "report": _MIGRATIONS - _POSTCOPY,
    "permission": _MIGRATIONS - _POSTCOPY,
    "sync": _POSTCOPY,
}
"""A message that is not listed is in every migration."""

_OF_PHASES: Final[Mapping[str, frozenset[Mode]]] = {
    Phase.PRECOPY.value: _MIGRATIONS,
    Phase.SUSPEND.value: _ALL - _PAGES_LAST,
    Phase.STOP_AND_COPY.value: _ALL - _PAGES_LAST,
    Phase.STATE.value: _ALL - _PAGES_LAST,
    Phase.POSTCOPY_PFNS_AHEAD.value: _PAGES_LAST,
    Phase.SUSPEND_FOR_POSTCOPY.value: _PAGES_LAST,
    Phase.POSTCOPY_BEGIN.value: _PAGES_LAST,
    Phase.POSTCOPY_PFNS.value: _PAGES_LAST,
    Phase.POSTCOPY_TRANSITION.value: _PAGES_LAST,
    Phase.POSTCOPY_PAGES.value: _POSTCOPY,
    Phase.POSTCOPY_DRAIN.value: _POSTCOPY,
    Stage.POSTCOPY_PFNS_AHEAD.value: _PAGES_LAST,
    Stage.POSTCOPY_STATE.value: _PAGES_LAST,
    Stage.POSTCOPY_PFNS.value: _PAGES_LAST,
}

_BY_PAGER: Final = (Phase.POSTCOPY_PAGES.value, Side.DESTINATION)
"""Pages that a page server sends are no phase at the source."""

_OF_RECORDS: Final[Mapping[str, frozenset[Mode]]] = {
    "POSTCOPY_OFFER": _LINK,
    "POSTCOPY_BEGIN": _PAGES_LAST,
    "POSTCOPY_PFNS_BEGIN": _PAGES_LAST,
    "POSTCOPY_PFNS": _PAGES_LAST,
    "POSTCOPY_TRANSITION": _PAGES_LAST,
    # With a link they pass the tunnel, in which nobody can see them.
    "POSTCOPY_PAGE_DATA": _POSTCOPY,
    "POSTCOPY_READY": _POSTCOPY,
    "POSTCOPY_FAULT": _POSTCOPY,
    "POSTCOPY_COMPLETE": _POSTCOPY,
    "POSTCOPY_TRANSITION_END": _POSTCOPY,
}

PRIMERS: Final[Mapping[str, str]] = {
    "abort": "{side}.controller/start:after-send=signal(TERM)",
    "refused": "{side}/hello:before-send=garbage",
    "permission": "destination.controller/handshake.go:heard=fail(EIO)",
}
"""The faults after which messages are sent that need something to go wrong first. `{side}` is the
message's."""


def primed(fault: Fault) -> tuple[Fault, ...]:
    """The fault, after the one that must go wrong first."""
    primer = PRIMERS.get(fault.point.of)
    if primer is None:
        return (fault,)
    side = "" if fault.side is None else fault.side.value
    return (*parse(primer.format(side=side)).faults, fault)


class Unreached(NamedTuple):
    """A point that no run passes."""

    point: Point
    why: str


def modes(point: Point, side: Side | None) -> frozenset[Mode]:
    """The modes in which a run passes `point` at `side`, None for the link."""
    if point.of in NOT_PASSED:
        return _NEVER
    match point.kind:
        case Kind.MESSAGE:
            return _of_message(point, side)
        case Kind.HANDSHAKE:
            return _OF_HANDSHAKE.get(point.of, _MIGRATIONS)
        case Kind.PHASE:
            found = _OF_PHASES.get(point.of, _ALL)
            return found | _LINK if (point.of, side) == _BY_PAGER else found
        case Kind.RECORD:
            return _OF_RECORDS.get(point.of, _ALL)
        case Kind.STEP:
            return _LINK
        case Kind.STREAM if point.who is Who.TUNNEL:
            return _LINK
        case Kind.STREAM if point.who is Who.LINK:
            return _MIGRATIONS
        case Kind.STREAM if point.of == "back":
            return _POSTCOPY
        case _:
            return _ALL


def _of_message(point: Point, side: Side | None) -> frozenset[Mode]:
    found = _OF_MESSAGES.get(point.of, _ALL)
    if side is Side.DESTINATION:
        found &= _OF_MESSAGES_AT_DESTINATION.get(point.of, _ALL)
    return found


def unreached(points: Mapping[tuple[Who, str], Point]) -> list[Unreached]:
    """The points of `points` that no cell of the matrix has."""
    return [
        Unreached(point, NOT_PASSED[point.of])
        for point in points.values()
        if point.of in NOT_PASSED
    ]
