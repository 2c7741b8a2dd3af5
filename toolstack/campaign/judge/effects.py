"""What each fault must do to the operation at its side, by libxl's rules alone.

Read it beside toolstack/rules/teardown.md: nothing here knows how our controller or helper is
written.
"""

from __future__ import annotations

import errno
import math
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause, why_errno
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault
from xen_save_helper.ipc_schema.faults.points import (
    BACK_RECORDS,
    CONNECTS,
    EXIT,
    START,
    Kind,
    Moment,
    Side,
    Who,
)
from xen_save_helper.ipc_schema.streams.phases import HEADERS, Phase
from xen_save_helper.toolstack.campaign.judge.expectation import (
    ABORTED,
    ALONE,
    BAD_ANSWER,
    CONTENTS,
    EITHER,
    FAILS,
    GUEST_TIMEDOUT,
    LATE,
    MISREAD,
    MISUNDERSTOOD,
    NONE,
    SILENCE,
    UNSAID,
    Effect,
    Expectation,
    Spoils,
    dies,
    outlasted,
    short,
    stops,
)
from xen_save_helper.toolstack.campaign.judge.link_effects import (
    of_page_server,
    of_pager,
    of_tunnel,
)
from xen_save_helper.toolstack.limits import Limits

_HELPER: Final = frozenset({Cause.HELPER})
_GUEST: Final = frozenset({Cause.GUEST})
_CANCELLED: Final = frozenset({Cause.ABORTED})

_TOLD: Final = frozenset({"log", "progress", "statistics", "restore_results", "page_server"})
"""Messages without an answer."""
_LONG_BEFORE_THE_END: Final = frozenset(
    {
        *("start", "hello", "suspend", "precopy_policy", "static_data_done"),
        *(HEADERS, Phase.STATIC_DATA.value, Phase.PRECOPY.value, Phase.SUSPEND.value),
        *(Phase.POSTCOPY_PFNS_AHEAD.value, Phase.SUSPEND_FOR_POSTCOPY.value),
    }
)
"""Messages and phases after which the guest's memory, or half of it, is still to come."""
_LAST: Final = "complete"
"""The message after whose answer the helper has nothing left to tell."""
_LAST_WORDS: Final = frozenset({"report", "permission", "sync"})
"""Messages of the handshake after which nobody waits for anything, if all went well."""

_QUICK: Final = 1 << 20
"""Bytes a second that pass every limit."""
_UNREADABLE: Final = frozenset({actions.WRONG_NUMBER, actions.OVERSIZE})
"""What no reader of records may accept."""
_WHOLE: Final = frozenset({actions.DROP, actions.DUPLICATE, actions.REORDER})
"""Actions that leave each record as it is."""
_BACK: Final = frozenset(kind.name for kind in BACK_RECORDS)
_FRAMES: Final = frozenset(
    {
        "POSTCOPY_OFFER",
        "LIBXC_CONTEXT",
        "CHECKPOINT_END",
        "CHECKPOINT_STATE",
        "POSTCOPY_TRANSITION_END",
        "END",
    }
)
"""Records without the guest's contents, of either stream."""
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
        "POSTCOPY_PFNS",
        "POSTCOPY_TRANSITION",
        "POSTCOPY_PAGE_DATA",
        "POSTCOPY_COMPLETE",
        "EMULATOR_CONTEXT",
    }
)
"""Records, of either stream, that are noticed if they are missing. Pages in precopy are not: there
may be none. Those that are left to postcopy are counted."""

_GOOD_ANSWERS: Final[Mapping[str, Callable[[int], Effect]]] = {
    "suspend": lambda value: _by(value == 1, value == 0),
    "switch_qemu_logdirty": lambda value: _by(value == 0, value == -1),
    "static_data_done": lambda value: _by(value == 0, value == -1),
    "postcopy_transition": lambda value: _by(value == 1, value == 0),
    "precopy_policy": lambda value: _by(value in {0, 1}, value == -1),
    "complete": lambda _value: Effect.NONE,
}
"""The table "What the answers mean" in ipc_schema/protocol.md; a value in neither column may do
either."""


def _either(_value: int) -> Effect:
    return Effect.EITHER


def _by(good: bool, bad: bool) -> Effect:
    return Effect.NONE if good else Effect.FAILS if bad else Effect.EITHER


def expectation(
    fault: Fault, limits: Limits, side: Side | None = None, *, alone: bool = False
) -> Expectation:
    """The expectation of a fault that has fired at `side`, None for the link. `alone`: the
    controller there has no parent that would continue it after a stop."""
    kind = fault.action.kind
    if fault.point.who is Who.GUEST:
        return _of_guest(fault, limits)
    if fault.point.who is Who.TUNNEL:
        return of_tunnel(fault, limits)
    if fault.point.who is Who.PAGE_SERVER:
        return of_page_server(fault, limits)
    if fault.point.who is Who.PAGER and fault.point.name != CONNECTS:
        return of_pager(fault)
    if kind in actions.PROCESS:
        controller = fault.point.who is Who.CONTROLLER
        found = _of_process(fault, limits, side, alone=alone and controller)
        return _died(fault, found) if controller else found
    if fault.point.kind is Kind.MESSAGE:
        return _of_message(fault, side)
    if fault.point.kind is Kind.HANDSHAKE:
        return _of_handshake(fault, limits)
    if fault.point.kind is Kind.PHASE:
        return _with_errno(fault)
    return _of_stream(fault, limits)


def _of_guest(fault: Fault, limits: Limits) -> Expectation:
    kind = fault.action.kind
    if kind is actions.CRASH:
        return Expectation(Effect.FAILS, _GUEST, FAILS, guest_dies=True, waits=())
    if kind is actions.LATE and float(fault.action.value or 0) <= short(limits):
        return NONE
    if kind is actions.LATE and float(fault.action.value or 0) <= limits.suspend + short(limits):
        return Expectation(Effect.EITHER, _GUEST, GUEST_TIMEDOUT)
    return Expectation(Effect.FAILS, _GUEST, GUEST_TIMEDOUT, waits=("callback", "suspend"))


def _of_process(fault: Fault, limits: Limits, side: Side | None, *, alone: bool) -> Expectation:
    kind, value = fault.action
    if stops(fault):
        seconds = float(value) if kind is actions.STOP and value is not None else math.inf
        return _stands_still(fault, seconds if alone else min(seconds, limits.stopped), limits)
    if kind is actions.EXIT:
        return _exits(fault, int(value or 0))
    if value in actions.HARMLESS:
        return NONE
    if dies(fault):
        return Expectation(Effect.FAILS, _HELPER, FAILS, status=-_number(fault), waits=())
    if kind is actions.SIGNAL:
        return _asked_to_end(fault, side)
    if float(value or 0) <= short(limits) and fault.times.is_first:
        return NONE
    if float(value or 0) > sum(asdict(limits).values()):
        # At these points nobody listens to the helper: one of its controller's limits ends it.
        alone_with_it = fault.point.name in {START, EXIT}
        return Expectation(Effect.FAILS, SILENCE, ALONE if alone_with_it else LATE)
    return EITHER


def _number(fault: Fault) -> int:
    return int(signal.Signals[f"SIG{fault.action.value}"])


def _asked_to_end(fault: Fault, side: Side | None) -> Expectation:
    """The process gets a signal that may have a handler: libxc's error path of a save, or a
    controller's cancellation. If it comes late it may do nothing."""
    point, name = fault.point, fault.action.value
    in_time = name == "TERM" and fault.times.is_first and point.of in _LONG_BEFORE_THE_END
    effect = Effect.FAILS if in_time else Effect.EITHER
    if point.who is Who.CONTROLLER:
        return Expectation(effect, _CANCELLED, ABORTED, waits=())
    if point.of == "suspend" and point.moment in {Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER}:
        effect = Effect.EITHER  # little is left to send of a live guest
    if name == "TERM" and side is Side.DESTINATION:
        effect = Effect.FAILS  # libxl's helper handles it only in a save
    return Expectation(effect, _CANCELLED | _HELPER, FAILS, status=-_number(fault), waits=())


def _stands_still(fault: Fault, seconds: float, limits: Limits) -> Expectation:
    """A process that is stopped is not dead, and its time counts nowhere; but whoever hears it only
    over the stream cannot see why it is silent."""
    if seconds == math.inf:
        return replace(EITHER, controller_dies=True)
    if seconds <= outlasted(limits) and fault.times.is_first:
        return NONE
    return replace(EITHER, causes=SILENCE)


def _exits(fault: Fault, code: int) -> Expectation:
    point = fault.point
    told = {Moment.AFTER_SEND, Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER}
    all_told = point.name == EXIT or (point.of == _LAST and point.moment in told)
    if not code and all_told:
        return NONE
    causes = _HELPER if code else _HELPER | {Cause.CHANNEL}
    return Expectation(Effect.FAILS, causes, FAILS, status=code, waits=())


def _died(fault: Fault, found: Expectation) -> Expectation:
    """The expectation `found` for a helper, of a controller."""
    kind, value = fault.action
    deadly = kind is actions.EXIT or (
        dies(fault) and value not in actions.HARMLESS | actions.STOPPING
    )
    if not (deadly or found.controller_dies):
        return found
    effect = Effect.EITHER if _all_is_said(fault) else Effect.FAILS
    return Expectation(effect, controller_dies=True, waits=found.waits)


def _all_is_said(fault: Fault) -> bool:
    point = fault.point
    after = point.moment in {Moment.AFTER_SEND, Moment.HEARD}
    return point.kind is Kind.HANDSHAKE and point.of in _LAST_WORDS and after


def _of_handshake(fault: Fault, limits: Limits) -> Expectation:
    """A message itself is changed, by a controller or on the link."""
    kind = fault.action.kind
    if fault.point.who is Who.LINK and kind is not actions.FLIP:
        found = _of_stream(fault, limits)
        return replace(found, causes=found.causes | UNSAID)
    if kind is actions.DUPLICATE and fault.point.of in {"go", *_LAST_WORDS}:
        return NONE  # nobody reads what follows it
    if kind is actions.HANG_UP and _all_is_said(fault):
        return EITHER
    found = _with_errno(fault) if kind is actions.FAIL else Expectation(Effect.FAILS)
    return replace(found, causes=found.causes | UNSAID, rcs=LATE, waits=None)


def _of_message(fault: Fault, side: Side | None) -> Expectation:
    kind, value = fault.action
    point = fault.point
    if kind is actions.ANSWER:
        effect = _GOOD_ANSWERS.get(point.of, _either)(int(value or 0))
        if not fault.times.is_first and (effect is Effect.FAILS or point.of == "precopy_policy"):
            # A policy's good answer is wrong if the policy has decided on another.
            effect = Effect.EITHER
        causes = BAD_ANSWER
        if point.of == "precopy_policy":
            causes |= {Cause.PROTOCOL}  # of a helper that does not do what it was told to
        return Expectation(effect, causes, LATE, waits=("stream_stall",))
    if kind is actions.FAIL:
        return _with_errno(fault)
    causes = SILENCE if kind in {actions.HANG_UP, actions.DROP} else MISUNDERSTOOD
    if point.who is Who.CONTROLLER:
        return Expectation(_of_controllers_message(fault, side), causes, LATE)
    before = Moment.BEFORE_SEND if kind is actions.HANG_UP else None
    if point.of == _LAST and kind in {actions.HANG_UP, actions.DUPLICATE}:
        effect = Effect.FAILS if point.moment is before else Effect.EITHER
        return Expectation(effect, causes, LATE)
    if kind is actions.DROP and point.of in _TOLD:
        # Nobody waits for it, but the next one shows the gap.
        causes = frozenset({Cause.PROTOCOL})
    return Expectation(Effect.FAILS, causes, LATE)


def of_ended_precopy(fault: Fault, found: Expectation) -> Expectation:
    """That of a policy's answer in whose place it told the helper to end precopy: it goes on in
    vain then, unless it has nothing to ask about any more."""
    goes_on = fault.action == (actions.ANSWER, PrecopyPolicy.CONTINUE_PRECOPY)
    return replace(found, effect=Effect.EITHER) if goes_on else found


def _of_controllers_message(fault: Fault, side: Side | None) -> Effect:
    kind, point = fault.action.kind, fault.point
    late = point.of in {_LAST, "abort", "refused"} or (
        # The first reply at the destination lets the memory come in; at the source it may be the
        # last one.
        point.of == "reply" and side is not Side.DESTINATION
    )
    if late and point.moment is not Moment.HEARD:
        return Effect.EITHER
    if kind is actions.DUPLICATE or not fault.times.is_first:
        return Effect.EITHER
    if kind is actions.DROP and point.moment is Moment.HEARD and point.of in _TOLD:
        return Effect.EITHER if point.of == "restore_results" else Effect.NONE
    return Effect.FAILS


def _with_errno(fault: Fault) -> Expectation:
    number = int(getattr(errno, str(fault.action.value)))
    # Log-dirty mode is turned off at the end as well, when nothing depends on it any more.
    undoes = fault.point.of in {"switch_qemu_logdirty", "abort", "refused", "log", "progress"}
    later = undoes and not fault.times.is_first
    effect = Effect.EITHER if later else Effect.FAILS
    causes = frozenset({why_errno(number).cause})
    if fault.point.kind is Kind.MESSAGE:
        causes |= {Cause.CHANNEL, Cause.HELPER}
    return Expectation(effect, causes, LATE, errnoval=number, waits=())


def _of_stream(fault: Fault, limits: Limits) -> Expectation:
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
        frozenset({Cause.INVALID}) if unreadable else MISREAD | CONTENTS,
        LATE,
        corrupts=True,
        spoils=_spoils(fault),
    )


def of_unsuspended(fault: Fault, found: Expectation) -> Expectation:
    """That of a stream which breaks at the source before the guest is asked to suspend. The break
    shows at the next write, and there may be none before the word that the stream is received."""
    if fault.action.kind not in {actions.EPIPE, actions.ENOSPC}:
        return found
    waits = ("callback", "handshake", "stream_stall")
    return replace(found, causes=found.causes | SILENCE, errnoval=0, waits=waits)


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
    if point.of in {"POSTCOPY_PFNS", "POSTCOPY_PAGE_DATA"} and kind in _WHOLE:
        return Spoils.NOTHING  # each page is listed once, and counted; and it is waited for
    return Spoils.MEMORY
