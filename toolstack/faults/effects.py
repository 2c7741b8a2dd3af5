"""What each fault must do to the operation at its side, by the rules of libxl alone.

Read it beside reference/teardown.md: nothing here knows how our controller or helper is written.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Final

from ipc_schema import fault_actions as actions
from ipc_schema.fault_plan import FIRST, Fault
from ipc_schema.fault_points import Kind, Moment, Who
from toolstack.limits import Limits


class Effect(Enum):
    NONE = "goes on"
    EITHER = "may fail"
    FAILS = "must fail"


@dataclass(frozen=True)
class Expectation:
    """`words`: a pattern that the error's text has, where the operation failed for this fault
    alone. `rcs`: the codes that may come of it. `controller_dies`: the process that it strikes is
    the controller, and it ends. `corrupts`: the stream is another one, and `effect` is that on its
    reader; where nothing protects what was changed, the guest made of it may be wrong, or crash.
    `guest_dies`: the guest crashes by itself."""

    effect: Effect
    words: str = "."
    rcs: frozenset[int] = frozenset()
    controller_dies: bool = False
    corrupts: bool = False
    guest_dies: bool = False


_FAIL: Final = -3
GUEST_TIMEDOUT: Final = -8
_TIMEDOUT: Final = -9
_FAILS: Final = frozenset({_FAIL})
_LATE: Final = frozenset({_FAIL, _TIMEDOUT})

_HARMLESS: Final = frozenset({"CHLD", "CONT", "URG", "WINCH"})
_STOPPING: Final = frozenset({"STOP", "TSTP", "TTIN", "TTOU"})
_SILENCE: Final = (
    r"sign of life|stopped|within|in time|has not come|stands? still|no answer|has ended|hung up|"
    r"does not take|has sent nothing|has done nothing|closed the link"
)
_GONE: Final = r"hung up|sign of life|does not take|exit status 254"
"""What either end says of another that has gone. 254: the helper takes its controller for gone."""
_UNANSWERED: Final = (
    rf"no answer|has not come|did not say|without (providing|signalling)|stands still|{_GONE}"
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
    r"Invalid argument|nothing received|sent nothing"
)
"""A stream that does not go on as its lengths or its order say."""
_REFUSED: Final[Mapping[actions.ActionKind, str]] = {
    actions.WRONG_NUMBER: r"unknown mandatory type",
    actions.OVERSIZE: r"body of \d+ octets",
    actions.TRUNCATE: _MISREAD,
}
"""What no reader of records may take, and its words for it."""
_INDISPENSABLE: Final = frozenset({"libxl.END", "libxl.LIBXC_CONTEXT", "libxc.END"})
_NONE: Final = Expectation(Effect.NONE)
_EITHER: Final = Expectation(Effect.EITHER)

_TOLD: Final = frozenset({"log", "progress", "statistics", "restore_results"})
"""Messages without an answer."""
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
"""reference/helper-protocol.md, «What the answers mean»; what stands in neither column may do
either."""


def _either(_value: int) -> Effect:
    return Effect.EITHER


def _by(good: bool, bad: bool) -> Effect:
    return Effect.NONE if good else Effect.FAILS if bad else Effect.EITHER


def short(limits: Limits) -> float:
    """Seconds that no limit minds, on a slow machine either."""
    return 0.5 * min(limits.heartbeat, limits.suspend, limits.stream_stall, limits.abort)


def expectation(fault: Fault, limits: Limits) -> Expectation:
    """For a fault that has fired."""
    kind = fault.action.kind
    if fault.point.who is Who.GUEST:
        return _of_guest(fault, limits)
    if kind in actions.PROCESS:
        found = _of_process(fault, limits)
        return _died(fault, found) if fault.point.who is Who.CONTROLLER else found
    if fault.point.kind is Kind.MESSAGE:
        return _of_message(fault)
    if fault.point.kind is Kind.HANDSHAKE:
        return _of_handshake(fault, limits)
    if fault.point.kind is Kind.PHASE:
        return _with_errno(fault)
    return _of_stream(fault, limits)


def _of_guest(fault: Fault, limits: Limits) -> Expectation:
    kind = fault.action.kind
    if kind is actions.CRASH:
        return Expectation(Effect.FAILS, r"crash", _FAILS, guest_dies=True)
    if kind is actions.LATE and float(fault.action.value or 0) <= short(limits):
        return _NONE
    if kind is actions.LATE and float(fault.action.value or 0) <= 2 * limits.suspend:
        return Expectation(Effect.EITHER, r"suspend", frozenset({GUEST_TIMEDOUT}))
    never = r"did not acknowledge the suspend request"
    return Expectation(Effect.FAILS, never, frozenset({GUEST_TIMEDOUT}))


def _of_process(fault: Fault, limits: Limits) -> Expectation:
    kind, value = fault.action
    if kind is actions.EXIT:
        return _exits(fault, int(value or 0))
    if kind is actions.DIE:
        if value in _HARMLESS:
            return _NONE
        if value in _STOPPING:
            return Expectation(Effect.FAILS, _SILENCE, _LATE)
        number = int(signal.Signals[f"SIG{value}"])
        return Expectation(Effect.FAILS, rf"signal {number}\b", _FAILS)
    if kind is actions.SIGNAL:
        return _NONE if value in _HARMLESS else _EITHER
    if kind is actions.STOP and value is None:
        return Expectation(Effect.FAILS, _SILENCE, _LATE)
    if float(value or 0) <= short(limits) and fault.times == FIRST:
        return _NONE
    if kind is actions.DELAY and float(value or 0) > sum(asdict(limits).values()):
        return Expectation(Effect.FAILS, _SILENCE, _LATE)
    return _EITHER


def _exits(fault: Fault, code: int) -> Expectation:
    if code:
        return Expectation(Effect.FAILS, rf"exit status {code}\b", _FAILS)
    point = fault.point
    if point.name == "exit":
        return _NONE
    told = {Moment.AFTER_SEND, Moment.BEFORE_ANSWER, Moment.AFTER_ANSWER}
    if point.of == _LAST and point.moment in told:
        return _NONE
    return Expectation(
        Effect.FAILS, r"without signalling completion|without providing results|hung up", _FAILS
    )


def _died(fault: Fault, found: Expectation) -> Expectation:
    """The controller itself is struck."""
    kind, value = fault.action
    deadly = kind is actions.EXIT or (kind is actions.DIE and value not in _HARMLESS)
    for_ever = kind is actions.STOP and value is None
    if deadly or for_ever:
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


def _of_message(fault: Fault) -> Expectation:
    kind, value = fault.action
    point = fault.point
    last = point.of == _LAST
    if kind is actions.ANSWER:
        effect = _GOOD_ANSWERS.get(point.of, _either)(int(value or 0))
        if fault.times != FIRST and (effect is Effect.FAILS or point.of == "precopy_policy"):
            # A policy's good answer is wrong where the policy has decided on another.
            effect = Effect.EITHER
        return Expectation(effect, _ABOUT.get(point.of, "."), _LATE)
    if kind is actions.FAIL:
        return _with_errno(fault)
    if point.who is Who.CONTROLLER:
        return _of_controllers_message(fault)
    if (
        last
        and kind in {actions.HANG_UP, actions.DUPLICATE}
        and point.moment is not (Moment.BEFORE_SEND if kind is actions.HANG_UP else None)
    ):
        return _EITHER
    words = _OF_A_MESSAGE.get(kind, _MISUNDERSTOOD)
    if kind is actions.DROP and point.of in _TOLD:
        words = r"wrong sequence number"  # nobody waits for it, but the next one shows the gap
    elif point.of == "hello":
        words += f"|{_UNANSWERED}"  # whoever says none is a stranger, and refused
    return Expectation(Effect.FAILS, words, _LATE)


def _of_controllers_message(fault: Fault) -> Expectation:
    kind = fault.action.kind
    point = fault.point
    if point.of in {_LAST, "abort", "refused", "reply"} and point.moment is not Moment.HEARD:
        return _EITHER
    if kind is actions.DUPLICATE or fault.times != FIRST:
        return _EITHER
    if kind is actions.DROP and point.moment is Moment.HEARD and point.of in _TOLD:
        return _EITHER if point.of == "restore_results" else _NONE
    return Expectation(Effect.FAILS, _OF_A_MESSAGE.get(kind, _MISUNDERSTOOD), _LATE)


def _with_errno(fault: Fault) -> Expectation:
    name = str(fault.action.value)
    number = int(getattr(errno, name))
    # Log-dirty mode is turned off in the end, too, and then nothing hangs on it.
    undoes = fault.point.of in {"switch_qemu_logdirty", "abort", "refused", "log", "progress"}
    later = undoes and fault.times != FIRST
    words = rf"{re.escape(os.strerror(number))}|{name}|{re.escape(str(fault))}"
    return Expectation(Effect.EITHER if later else Effect.FAILS, words, _LATE)


def _of_stream(fault: Fault, limits: Limits) -> Expectation:
    kind, value = fault.action
    if kind is actions.SHORT_WRITES:
        return _NONE
    if kind is actions.TRICKLE:
        return _EITHER
    if kind is actions.STALL and value is not None:
        return _NONE if float(value) <= short(limits) and fault.times == FIRST else _EITHER
    if kind is actions.STALL:
        return Expectation(Effect.FAILS, _SILENCE, _LATE)
    if kind in {actions.CUT, actions.RESET, actions.EPIPE}:
        return Expectation(
            Effect.FAILS,
            r"Broken pipe|reset|ends|end of|closed|cut|Bad file descriptor|ended|hung up",
            _LATE,
        )
    if kind is actions.ENOSPC:
        return Expectation(Effect.FAILS, r"No space left", _LATE)
    refused = _REFUSED.get(kind)
    if kind is actions.DROP and fault.point.of in _INDISPENSABLE:
        refused = _MISREAD
    if fault.point.kind is Kind.RECORD and refused:
        return Expectation(Effect.FAILS, refused, _LATE, corrupts=True)
    return Expectation(Effect.EITHER, corrupts=True)
