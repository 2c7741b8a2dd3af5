"""What each fault of a page server or a pager must do, by who has the guest's last pages in hand.

Before the page server has been told what to keep, nothing depends on it: the migration does without
a link. From then on the pages are lost with it, until the last one is in place at the destination;
and so they are with the pager, which has the guest's memory half filled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault
from xen_save_helper.ipc_schema.faults.points import (
    ALL_IN,
    DRAINED,
    EXIT,
    KEEPS,
    OFFERS,
    Who,
)
from xen_save_helper.toolstack.campaign.judge.expectation import (
    EITHER,
    LATE,
    NONE,
    SILENCE,
    Effect,
    Expectation,
    dies,
    outlasted,
    stops,
)
from xen_save_helper.toolstack.limits import Limits

_WITHOUT_PAGES: Final = frozenset({Cause.DESTINATION, Cause.HELPER, Cause.SYSTEM})
"""Causes at a source that has lost its page server."""
LOST: Final = Expectation(
    Effect.FAILS, _WITHOUT_PAGES, LATE, loses_pages=True, waits=("stopped", "stopped")
)
"""Either has ended with pages in hand."""
ALL_THERE: Final = Expectation(Effect.EITHER, _WITHOUT_PAGES, LATE)
"""Either has ended when all were in place, of which nobody may have heard."""


def of_page_server(fault: Fault, limits: Limits) -> Expectation:
    """The expectation of a fault at a step of a page server."""
    point = fault.point.name
    if point in {OFFERS, KEEPS}:
        return _of_a_part_of_the_save(fault, limits)
    if not ends(fault):
        return NONE
    return ALL_THERE if point == DRAINED else LOST


def of_pager(fault: Fault) -> Expectation:
    """The expectation of a fault at a step of a pager that its controller has left."""
    if not ends(fault):
        return NONE
    return ALL_THERE if fault.point.name == ALL_IN else LOST


def of_tunnel(fault: Fault, limits: Limits) -> Expectation:
    """A connection that breaks is made anew. One that stands still is noticed after a while, for
    which the sender may have to wait before it suspends the guest."""
    late = limits.stream_stall and limits.stream_stall <= _NOTICED_WITHIN
    if fault.action.kind is actions.STALL and late:
        return replace(EITHER, causes=SILENCE)
    return NONE


def of_restore(fault: Fault, found: Expectation) -> Expectation:
    """The expectation `found` for a restoring helper, of one that may go on as a pager: an exit is
    taken for its end only if it has said that it ends."""
    kind, code = fault.action
    if kind is not actions.EXIT or code or fault.point.name == EXIT:
        return found
    return Expectation(Effect.FAILS, frozenset({Cause.HELPER, Cause.CHANNEL}), LATE, waits=())


_NOTICED_WITHIN: Final = 6.0
"""Seconds until a connection that stands still has been replaced: twice as long as it takes to
notice (postcopy_link.tunnel)."""


def ends(fault: Fault) -> bool:
    """Whether it ends a process that nobody waits for: a person ends one that stands still for
    ever."""
    kind, value = fault.action
    if stops(fault):
        return kind is not actions.STOP or value is None
    if kind is actions.SIGNAL:
        ignored = frozenset() if fault.point.who is Who.PAGE_SERVER else _IGNORED
        return value not in actions.HARMLESS | ignored
    return kind is actions.EXIT or (dies(fault) and value not in actions.HARMLESS)


_IGNORED: Final = frozenset({"HUP", "INT"})
"""Of a terminal that a pager has left."""


def _of_a_part_of_the_save(fault: Fault, limits: Limits) -> Expectation:
    """The helper waits for it, within its own limits."""
    kind, value = fault.action
    waits = stops(fault) or kind is actions.DELAY
    if waits:
        for_ever = kind is not actions.DELAY and (kind is not actions.STOP or value is None)
        if not for_ever and float(value or 0) <= outlasted(limits):
            return NONE
        return Expectation(Effect.EITHER, SILENCE | {Cause.SYSTEM}, LATE)
    if not ends(fault) or fault.point.name == OFFERS:
        return NONE
    return Expectation(Effect.FAILS, frozenset({Cause.SYSTEM}), LATE, waits=())
