"""What a fault in a stream leads to: which damage the reader notices, which spoils the guest."""

from __future__ import annotations

import errno
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault
from xen_save_helper.ipc_schema.faults.points import BACK_RECORDS, Kind
from xen_save_helper.toolstack.campaign.judge.expectation import (
    EITHER,
    LATE,
    MISREAD,
    NONE,
    SILENCE,
    Effect,
    Expectation,
    Spoils,
    short,
)
from xen_save_helper.toolstack.limits import Limits

_QUICK: Final = 1 << 20
"""Bytes a second that pass every limit."""
_UNREADABLE: Final = frozenset({actions.WRONG_NUMBER, actions.OVERSIZE})
"""What no reader of records may accept."""
_WHOLE: Final = frozenset({actions.DROP, actions.DUPLICATE, actions.REORDER})
"""Actions that leave each record as it is."""
_BACK: Final = frozenset(kind.name for kind in BACK_RECORDS)
_FRAMES: Final = frozenset(
    {
        "LIBXC_CONTEXT",
        "CHECKPOINT_END",
        "CHECKPOINT_STATE",
        "POSTCOPY_TRANSITION_END",
        "END",
    }
)
"""Records without contents, of either stream."""
_OF_DEVICE_MODEL: Final = frozenset({"EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT"})
_INDISPENSABLE: Final = frozenset(
    {
        "LIBXC_CONTEXT",
        "POSTCOPY_TRANSITION_END",
        "END",
        "STATIC_DATA_END",
        "HVM_CONTEXT",
        "POSTCOPY_BEGIN",
        "POSTCOPY_PFNS_BEGIN",
        "POSTCOPY_TRANSITION",
        "POSTCOPY_PAGE_DATA",
        "POSTCOPY_COMPLETE",
        "EMULATOR_CONTEXT",
    }
)
"""Records, of either stream, that are noticed if they are missing. A list of pages, or the contents
of pages in precopy, is not: there may be none."""


def of_stream(fault: Fault, limits: Limits) -> Expectation:
    kind, value = fault.action
    if kind is actions.SHORT_WRITES:
        return NONE
    if kind is actions.TRICKLE:
        return NONE if int(value or 0) >= _QUICK else EITHER
    if kind is actions.STALL and value is not None:
        return NONE if float(value) <= short(limits) and fault.times.is_first else EITHER
    if kind is actions.STALL:
        return Expectation(Effect.FAILS, SILENCE, LATE, waits=("stream_stall", "handshake"))
    if kind in {actions.CUT, actions.RESET, actions.EPIPE}:
        return Expectation(Effect.FAILS, frozenset({Cause.PEER}), LATE, waits=("stream_stall",))
    if kind is actions.ENOSPC:
        full = frozenset({Cause.SYSTEM})
        return Expectation(Effect.FAILS, full, LATE, errnoval=errno.ENOSPC, waits=())
    unreadable = kind in _UNREADABLE
    missed = kind is actions.DROP and fault.point.of in _INDISPENSABLE
    noticed = unreadable or missed or kind is actions.TRUNCATE
    return Expectation(
        Effect.FAILS if noticed and fault.point.kind is Kind.RECORD else Effect.EITHER,
        frozenset({Cause.INVALID}) if unreadable else MISREAD,
        LATE,
        corrupts=True,
        spoils=_spoils(fault),
    )


def _spoils(fault: Fault) -> Spoils:
    """What a change on the way spoils: the framing of records, page lists and their order are
    checked; the contents are not."""
    kind, point = fault.action.kind, fault.point
    if point.name == "back" or point.of in _BACK or point.of in _FRAMES:
        return Spoils.NOTHING
    if point.of in _OF_DEVICE_MODEL:
        return Spoils.DEVICE_MODEL
    if kind in _UNREADABLE:
        return Spoils.NOTHING  # nobody reads further
    if point.of == "POSTCOPY_PAGE_DATA" and kind in _WHOLE:
        return Spoils.NOTHING  # each page was listed, and is waited for
    return Spoils.MEMORY
