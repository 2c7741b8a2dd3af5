"""What each fault must do to the operation at its side, by the rules of libxl alone.

Read it beside toolstack/rules/teardown.md: nothing here knows how our controller or helper is
written.
"""

from __future__ import annotations

import errno
import math
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault
from xen_save_helper.ipc_schema.faults.points import (
    BACK_RECORDS,
    EXIT,
    START,
    Kind,
    Moment,
    Side,
    Who,
)
from xen_save_helper.ipc_schema.streams.phases import HEADERS, Phase
from xen_save_helper.toolstack.limits import Limits


class Effect(Enum):
    NONE = "goes on"
    EITHER = "may fail"
    FAILS = "must fail"


class Spoils(Enum):
    """What of the guest that is made at the destination may be wrong, since nothing protects it."""

    NOTHING = "nothing"
    DEVICE_MODEL = "its device model: it may crash"
    MEMORY = "its memory, or its registers: it may crash, or run with a wrong page"


@dataclass(frozen=True)
class Expectation:
    """`words`: a pattern that the error's text has, where the operation failed for this fault
    alone. `rcs`: the codes that may come of it. `controller_dies`: the process that it strikes is
    the controller, and it ends. `corrupts`: the stream is another one, and `effect` is that on its
    reader. `guest_dies`: the guest crashes by itself. `waits`: the fields of `Limits` that may have
    to pass, one after another, until anybody sees that something is wrong; None: any of them."""

    effect: Effect
    words: str = "."
    rcs: frozenset[int] = frozenset()
    controller_dies: bool = False
    corrupts: bool = False
    spoils: Spoils = Spoils.NOTHING
    guest_dies: bool = False
    waits: tuple[str, ...] | None = None


_FAIL: Final = -3
GUEST_TIMEDOUT: Final = -8
_TIMEDOUT: Final = -9
_ABORTED: Final = -22
_FAILS: Final = frozenset({_FAIL})
_LATE: Final = frozenset({_FAIL, _TIMEDOUT})
_ALONE: Final = frozenset({_TIMEDOUT})
OF_A_PEER: Final[Mapping[Side, frozenset[int]]] = {
    Side.SOURCE: _LATE,
    Side.DESTINATION: _LATE | {_ABORTED},
}
"""The codes at a side when it is the other one that has failed: the source ends a receiver that
takes its time by SIGTERM."""

_HARMLESS: Final = frozenset({"CHLD", "CONT", "URG", "WINCH"})
_STOPPING: Final = frozenset({"STOP", "TSTP", "TTIN", "TTOU"})
_GONE: Final = (
    r"the (helper|controller|other side) hung up|no sign of life for|the helper does not take|"
    r"the controller took nothing|exit status 254"
)
"""What either end says of another that has gone. 254: the helper takes its controller for gone."""
_SILENCE: Final = (
    rf"{_GONE}|the helper has (done|said) nothing\b|has not come to (hello|its end)|"
    r"did not (come|take \w.*) within|no answer to \w+ within|no postcopy page for|"
    r"stream.* stands? still|the other side has (taken|sent) nothing for|"
    r"closed (it|the link) before"
)
_BROKEN: Final = (
    r"(stream|back channel|record|header)\b.*(Broken pipe|reset by peer|Bad file descriptor)|"
    r"(Broken pipe|reset by peer).*(stream|back channel|record)|the stream ends|"
    r"closed (it|the link) before|cannot (send|receive) \w+"
)
"""A stream, channel or link, and what became of it."""
_UNANSWERED: Final = (
    rf"no answer to|has not come to|did not say|has said nothing|stream.* stands? still|{_GONE}|"
    r"without (providing results|signalling completion)"
)
_MISUNDERSTOOD: Final = rf"broke the protocol|the controller refused|{_GONE}"
_OF_A_MESSAGE: Final[Mapping[actions.ActionKind, str]] = {
    actions.HANG_UP: _GONE,
    actions.DROP: _UNANSWERED,
    actions.REORDER: rf"{_UNANSWERED}|{_MISUNDERSTOOD}",
}
"""The words for what was done to a message, where they are not _MISUNDERSTOOD."""
_ABOUT: Final[Mapping[str, str]] = {
    "suspend": "suspend",
    "switch_qemu_logdirty": "log-dirty",
    "static_data_done": "static_data_done",
    "postcopy_transition": "postcopy",
    "precopy_policy": "precopy",
}
"""The words for a callback whose answer is bad."""
_MISREAD: Final = (
    r"(?<!write )at offset|header:|the stream ends|emulator xenstore data|"
    r"Invalid argument|nothing received|sent nothing|stream.* stands? still"
)
"""A stream that does not go on as its lengths or its order say: its reader finds something else, or
waits for more, and then its writer, too."""
_REFUSED: Final[Mapping[actions.ActionKind, str]] = {
    actions.WRONG_NUMBER: r"unknown mandatory type",
    actions.OVERSIZE: r"body of \d+ bytes",
    actions.TRUNCATE: _MISREAD,
}
"""What no reader of records may take, and its words for it."""
_QUICK: Final = 1 << 20
"""Octets a second that are no stall, and take no longer than a limit."""
_WHOLE: Final = frozenset({actions.DROP, actions.DUPLICATE, actions.REORDER})
"""Leave each record as it is."""
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
"""Records that hold nothing, of either stream."""
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
"""Records, of either stream, whose lack is seen. That of a list of pages, or of their contents in
precopy, nobody can see: there may be none."""
_MISSED: Final = (
    rf"{_MISREAD}|no postcopy page for|waiting for POSTCOPY_COMPLETE|the stream ends|"
    r"no state of the device model"
)
_NO_SENSE: Final = r"HVM context|instead of"
"""What is read as it came, and is not what it should be."""
_NONE: Final = Expectation(Effect.NONE)
_EITHER: Final = Expectation(Effect.EITHER, rcs=_LATE)

_TOLD: Final = frozenset({"log", "progress", "statistics", "restore_results"})
"""Messages without an answer."""
_LONG_BEFORE_THE_END: Final = frozenset(
    {
        *("start", "hello", "suspend", "precopy_policy", "static_data_done"),
        *(HEADERS, Phase.STATIC_DATA.value, Phase.PRECOPY.value, Phase.SUSPEND.value),
        Phase.SUSPEND_FOR_POSTCOPY.value,
    }
)
"""Messages and phases behind which the guest's memory is still to come, or half of it."""
_LAST: Final = "complete"
"""Behind its answer the helper has told all that it had to tell."""

_LAST_WORDS: Final = frozenset({"report", "permission", "sync"})
"""Messages of the handshake behind which nothing is waited for, where all went well."""
_UNSAID: Final = (
    r"closed the link|did not come|instead of|could not start|cannot (send|receive)|Broken pipe|"
    rf"reset|{_MISREAD}"
)
"""What either end says of a message of the handshake that has not come as it was sent."""

_GOOD_ANSWERS: Final[Mapping[str, Callable[[int], Effect]]] = {
    "suspend": lambda value: _by(value == 1, value == 0),
    "switch_qemu_logdirty": lambda value: _by(value == 0, value == -1),
    "static_data_done": lambda value: _by(value == 0, value == -1),
    "postcopy_transition": lambda value: _by(value == 1, value == 0),
    "precopy_policy": lambda value: _by(value in {0, 1}, value == -1),
    "complete": lambda _value: Effect.NONE,
}
"""ipc_schema/protocol.md, "What the answers mean"; what stands in neither column may do
either."""


def _either(_value: int) -> Effect:
    return Effect.EITHER


def _by(good: bool, bad: bool) -> Effect:
    return Effect.NONE if good else Effect.FAILS if bad else Effect.EITHER


def short(limits: Limits) -> float:
    """Seconds that no limit minds, on a slow machine either."""
    return 0.5 * min(limits.suspend, limits.stream_stall, limits.abort)


def _outlasted(limits: Limits) -> float:
    """Seconds for which a process may be stopped that somebody waits for who cannot see it."""
    return 0.7 * min(limits.stream_stall, limits.handshake)


def expectation(
    fault: Fault, limits: Limits, side: Side | None = None, *, alone: bool = False
) -> Expectation:
    """For a fault that has fired, at `side` (None: of the link). `alone`: the controller there is
    no other's child, who would let it go on when it is stopped."""
    kind = fault.action.kind
    if fault.point.who is Who.GUEST:
        return _of_guest(fault, limits)
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
        return Expectation(Effect.FAILS, r"crash", _FAILS, guest_dies=True, waits=())
    if kind is actions.LATE and float(fault.action.value or 0) <= short(limits):
        return _NONE
    if kind is actions.LATE and float(fault.action.value or 0) <= limits.suspend + short(limits):
        return Expectation(Effect.EITHER, r"suspend", frozenset({GUEST_TIMEDOUT}))
    never = r"did not acknowledge the suspend request"
    return Expectation(
        Effect.FAILS, never, frozenset({GUEST_TIMEDOUT}), waits=("callback", "suspend")
    )


def _of_process(fault: Fault, limits: Limits, side: Side | None, *, alone: bool) -> Expectation:
    kind, value = fault.action
    if _stops(fault):
        seconds = float(value) if kind is actions.STOP and value is not None else math.inf
        return _stands_still(fault, seconds if alone else min(seconds, limits.stopped), limits)
    if kind is actions.EXIT:
        return _exits(fault, int(value or 0))
    if _dies(fault):
        if value in _HARMLESS:
            return _NONE
        number = int(signal.Signals[f"SIG{value}"])
        return Expectation(Effect.FAILS, rf"signal {number}\b", _FAILS, waits=())
    if kind is actions.SIGNAL:
        return _NONE if value in _HARMLESS else _asked_to_end(fault, side)
    if float(value or 0) <= short(limits) and fault.times.is_first:
        return _NONE
    if kind is actions.DELAY and float(value or 0) > sum(asdict(limits).values()):
        # One that nobody listens to yet, or any more: a limit of its controller's ends it.
        alone_with_it = fault.point.name in {START, EXIT}
        return Expectation(Effect.FAILS, _SILENCE, _ALONE if alone_with_it else _LATE)
    return _EITHER


def _stops(fault: Fault) -> bool:
    kind, value = fault.action
    by_signal = kind is actions.DIE or (kind is actions.SIGNAL and value == "STOP")
    return kind is actions.STOP or (by_signal and value in _STOPPING)


def _dies(fault: Fault) -> bool:
    """By a signal, whatever handles it; nobody handles SIGKILL."""
    kind, value = fault.action
    return kind is actions.DIE or (kind is actions.SIGNAL and value == "KILL")


def _asked_to_end(fault: Fault, side: Side | None) -> Expectation:
    """By a signal that may have a handler: libxc's error path of a save, a controller's
    cancellation. Late ones are for nothing."""
    point, name = fault.point, fault.action.value
    in_time = name == "TERM" and fault.times.is_first and point.of in _LONG_BEFORE_THE_END
    effect = Effect.FAILS if in_time else Effect.EITHER
    if point.who is Who.CONTROLLER:
        words = r"cancelled|aborted|interrupted"
        return Expectation(effect, words, frozenset({_ABORTED}), waits=())
    number = int(signal.Signals[f"SIG{name}"])
    if point.of == "suspend" and point.moment in {Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER}:
        effect = Effect.EITHER  # of a live guest little is left to send
    if name == "TERM" and side is Side.DESTINATION:
        effect = Effect.FAILS  # libxl's helper handles it in a save alone
    return Expectation(effect, rf"SIG{name} received|signal {number}\b", _FAILS, waits=())


def _stands_still(fault: Fault, seconds: float, limits: Limits) -> Expectation:
    """What is stopped is not dead, and its time counts nowhere; but who hears it over the stream
    alone cannot see why it is silent."""
    if seconds == math.inf:
        return replace(_EITHER, controller_dies=True)
    if seconds <= _outlasted(limits) and fault.times.is_first:
        return _NONE
    return replace(_EITHER, words=_SILENCE)


def _exits(fault: Fault, code: int) -> Expectation:
    if code:
        return Expectation(Effect.FAILS, rf"exit status {code}\b", _FAILS, waits=())
    point = fault.point
    if point.name == "exit":
        return _NONE
    told = {Moment.AFTER_SEND, Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER}
    if point.of == _LAST and point.moment in told:
        return _NONE
    words = r"without signalling completion|without providing results|hung up"
    return Expectation(Effect.FAILS, words, _FAILS, waits=())


def _died(fault: Fault, found: Expectation) -> Expectation:
    """The controller itself is struck."""
    kind, value = fault.action
    deadly = kind is actions.EXIT or (_dies(fault) and value not in _HARMLESS | _STOPPING)
    if deadly or found.controller_dies:
        effect = Effect.EITHER if _all_is_said(fault) else Effect.FAILS
        return replace(found, effect=effect, words=".", rcs=frozenset(), controller_dies=True)
    return found


def _all_is_said(fault: Fault) -> bool:
    point = fault.point
    after = point.moment in {Moment.AFTER_SEND, Moment.HEARD}
    return point.kind is Kind.HANDSHAKE and point.of in _LAST_WORDS and after


def _of_handshake(fault: Fault, limits: Limits) -> Expectation:
    """What is done to a message itself, by a controller or on the link."""
    kind = fault.action.kind
    if fault.point.who is Who.LINK and kind is not actions.FLIP:
        found = _of_stream(fault, limits)
        return replace(found, words=f"{found.words}|{_UNSAID}")
    if kind is actions.DUPLICATE and fault.point.of in {"go", *_LAST_WORDS}:
        return _NONE  # nobody reads what is behind it
    if kind is actions.HANG_UP and _all_is_said(fault):
        return _EITHER
    words = f"{_with_errno(fault).words}|{_UNSAID}" if kind is actions.FAIL else _UNSAID
    return Expectation(Effect.FAILS, words, _LATE)


def _of_message(fault: Fault, side: Side | None) -> Expectation:
    kind, value = fault.action
    point = fault.point
    last = point.of == _LAST
    if kind is actions.ANSWER:
        effect = _GOOD_ANSWERS.get(point.of, _either)(int(value or 0))
        if not fault.times.is_first and (effect is Effect.FAILS or point.of == "precopy_policy"):
            # A policy's good answer is wrong where the policy has decided on another.
            effect = Effect.EITHER
        return Expectation(effect, _ABOUT.get(point.of, "."), _LATE, waits=("stream_stall",))
    if kind is actions.FAIL:
        return _with_errno(fault)
    if point.who is Who.CONTROLLER:
        return _of_controllers_message(fault, side)
    words = _OF_A_MESSAGE.get(kind, _MISUNDERSTOOD)
    if (
        last
        and kind in {actions.HANG_UP, actions.DUPLICATE}
        and point.moment is not (Moment.BEFORE_SEND if kind is actions.HANG_UP else None)
    ):
        return replace(_EITHER, words=words)
    if kind is actions.DROP and point.of in _TOLD:
        words = r"wrong sequence number"  # nobody waits for it, but the next one shows the gap
    elif point.of == "hello":
        words += f"|{_UNANSWERED}"  # whoever says none is a stranger, and refused
    return Expectation(Effect.FAILS, words, _LATE)


def _of_controllers_message(fault: Fault, side: Side | None) -> Expectation:
    kind = fault.action.kind
    point = fault.point
    late = point.of in {_LAST, "abort", "refused"} or (
        # The first one at the destination lets the memory come in; at the source it may be that
        # of the end.
        point.of == "reply" and side is not Side.DESTINATION
    )
    words = _OF_A_MESSAGE.get(kind, _MISUNDERSTOOD)
    if late and point.moment is not Moment.HEARD:
        return replace(_EITHER, words=words)
    if kind is actions.DUPLICATE or not fault.times.is_first:
        return replace(_EITHER, words=words)
    if kind is actions.DROP and point.moment is Moment.HEARD and point.of in _TOLD:
        return replace(_EITHER, words=words) if point.of == "restore_results" else _NONE
    return Expectation(Effect.FAILS, words, _LATE)


def _with_errno(fault: Fault) -> Expectation:
    name = str(fault.action.value)
    number = int(getattr(errno, name))
    # Log-dirty mode is turned off in the end, too, and then nothing hangs on it.
    undoes = fault.point.of in {"switch_qemu_logdirty", "abort", "refused", "log", "progress"}
    later = undoes and not fault.times.is_first
    words = rf"{re.escape(os.strerror(number))}|{name}|{re.escape(str(fault))}"
    return Expectation(Effect.EITHER if later else Effect.FAILS, words, _LATE, waits=())


def _of_stream(fault: Fault, limits: Limits) -> Expectation:
    kind, value = fault.action
    if kind is actions.SHORT_WRITES:
        return _NONE
    if kind is actions.TRICKLE:
        return _NONE if int(value or 0) >= _QUICK else _EITHER
    if kind is actions.STALL and value is not None:
        return _NONE if float(value) <= short(limits) and fault.times.is_first else _EITHER
    if kind is actions.STALL:
        return Expectation(Effect.FAILS, _SILENCE, _LATE, waits=("stream_stall", "handshake"))
    if kind in {actions.CUT, actions.RESET, actions.EPIPE}:
        return Expectation(
            Effect.FAILS,
            _BROKEN,
            _LATE,
            waits=("stream_stall",),
        )
    if kind is actions.ENOSPC:
        return Expectation(Effect.FAILS, r"No space left", _LATE, waits=())
    refused = _REFUSED.get(kind)
    if kind is actions.DROP and fault.point.of in _INDISPENSABLE:
        refused = _MISSED
    if fault.point.kind is Kind.RECORD and refused:
        return Expectation(Effect.FAILS, refused, _LATE, corrupts=True, spoils=_spoils(fault))
    words = rf"{_MISSED}|{_NO_SENSE}"
    return Expectation(Effect.EITHER, words, _LATE, corrupts=True, spoils=_spoils(fault))


def _spoils(fault: Fault) -> Spoils:
    """Of what is changed on its way: the framing of records, page lists and their order are
    checked; what they hold is not."""
    kind, point = fault.action.kind, fault.point
    if point.name == "back" or point.of in _BACK or point.of in _FRAMES:
        return Spoils.NOTHING
    if point.of in _OF_DEVICE_MODEL:
        return Spoils.DEVICE_MODEL
    if kind in {actions.WRONG_NUMBER, actions.OVERSIZE}:
        return Spoils.NOTHING  # nobody reads further
    if point.of == "POSTCOPY_PAGE_DATA" and kind in _WHOLE:
        return Spoils.NOTHING  # each page was listed, and is waited for
    return Spoils.MEMORY
