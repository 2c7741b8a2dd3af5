"""What a fault can do, and which points admit it."""

from __future__ import annotations

import errno
import math
import re
import signal
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Answer, Sender
from xen_save_helper.ipc_schema.faults.points import Kind, Moment, Point, Side, Who

Value = int | float | str


class Argument(NamedTuple):
    """The argument in an action's parentheses. `read` raises ValueError for an invalid one."""

    name: str
    want: str
    read: Callable[[str], Value]


class ActionKind(NamedTuple):
    """A kind of action. `argument` is None if it takes none; `optional`: it may be left out."""

    name: str
    argument: Argument | None
    optional: bool
    doc: str

    def __str__(self) -> str:
        """The kind as it is listed: `exit(CODE)`, `stop[(SECONDS)]`."""
        if self.argument is None:
            return self.name
        shown = f"({self.argument.name})"
        return f"{self.name}[{shown}]" if self.optional else f"{self.name}{shown}"


class Action(NamedTuple):
    """An action with its argument; `value` is None if none was given."""

    kind: ActionKind
    value: Value | None = None

    def __str__(self) -> str:
        """The action as it is typed."""
        if self.value is None:
            return self.kind.name
        return f"{self.kind.name}({text_of(self.value)})"


def text_of(value: Value) -> str:
    """A value as it is typed."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"-?(0x[0-9a-fA-F]+|[0-9]+)", text, re.ASCII):
            raise ValueError
        value = int(text, 16) if "x" in text else int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return read


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?", text, re.ASCII):
        raise ValueError
    seconds = float(text)
    if not (math.isfinite(seconds) and seconds < 2**31):
        raise ValueError
    return seconds


def _signal(text: str) -> str:
    name = text.upper().removeprefix("SIG")
    if f"SIG{name}" not in signal.Signals.__members__:
        raise ValueError
    return name


def _errno(text: str) -> str:
    name = text.upper()
    if not name.startswith("E") or not isinstance(getattr(errno, name, None), int):
        raise ValueError
    return name


_CODE: Final = Argument("CODE", "an exit status from 0 to 255", _integer(0, 255))
_SIGNAL: Final = Argument("SIGNAL", "a signal's name, as KILL", _signal)
_SECONDS: Final = Argument("SECONDS", "seconds, as 2 or 0.5", _seconds)
_VALUE: Final = Argument(
    "VALUE", "a whole number from -2147483648 to 2147483647", _integer(-(2**31), 2**31 - 1)
)
_ERRNO: Final = Argument("ERRNO", "an errno's name, as EIO", _errno)
_BYTES: Final = Argument("BYTES", "bytes, 1 or more", _integer(1, 2**31 - 1))
_RATE: Final = Argument("BYTES_PER_SECOND", "bytes a second, 1 or more", _integer(1, 2**31 - 1))
_BIT: Final = Argument("BIT", "a bit from 0 (the least) to 7", _integer(0, 7))

# fmt: off
EXIT = ActionKind("exit", _CODE, False, "the process exits at once, without its error path")
DIE = ActionKind("die", _SIGNAL, False, "the process dies by the signal, whatever handles it")
STOP = ActionKind("stop", _SECONDS, True, "the process stops (SIGSTOP), for ever or for a time")
DELAY = ActionKind("delay", _SECONDS, False, "what is about to happen waits")
SIGNAL = ActionKind("signal", _SIGNAL, False, "the process gets the signal, and handles it")
PROCESS: Final = (EXIT, DIE, STOP, DELAY, SIGNAL)

ANSWER = ActionKind("answer", _VALUE, False, "another value takes the place of the answer's")
FAIL = ActionKind("fail", _ERRNO, False, "what is about to happen fails with the errno")
HANG_UP = ActionKind("hang-up", None, False, "the process closes the channel, and lives on")

DROP = ActionKind("drop", None, False, "it is not passed on")
DUPLICATE = ActionKind("duplicate", None, False, "it is passed on twice")
REORDER = ActionKind("reorder", None, False, "it is passed on after the next one")
GARBAGE = ActionKind("garbage", None, False, "random bytes take the place of its contents")
TRUNCATE = ActionKind("truncate", None, False, "the second half of its bytes is missing")
OVERSIZE = ActionKind("oversize", None, False, "it is, or says that it is, longer than allowed")
WRONG_SEQUENCE = ActionKind("wrong-sequence", None, False, "its sequence number is one too high")
WRONG_NUMBER = ActionKind("wrong-number", None, False, "its name, number or type is unknown")
_MANGLE: Final = (DROP, DUPLICATE, GARBAGE, TRUNCATE, OVERSIZE, WRONG_NUMBER)
MESSAGE: Final = (*_MANGLE, REORDER, WRONG_SEQUENCE)
RECORD: Final = (*_MANGLE, REORDER)

CUT = ActionKind("cut", None, False, "the stream ends here, for both ends")
FLIP = ActionKind("flip", _BIT, True, "a bit of the next octet (the lowest) is turned over")
STALL = ActionKind("stall", _SECONDS, True, "nothing passes any more, for ever or for a time")
TRICKLE = ActionKind("trickle", _RATE, False, "from here on it passes slowly")
SHORT_WRITES = ActionKind("short-writes", _BYTES, False, "from here on, at most so many bytes "
                          "pass at once")
EPIPE = ActionKind("epipe", None, False, "the next write fails with EPIPE, nothing passes")
ENOSPC = ActionKind("enospc", None, False, "the next write fails with ENOSPC, nothing passes")
RESET = ActionKind("reset", None, False, "the next write or read fails with ECONNRESET")
_PASSING: Final = (CUT, FLIP, STALL, TRICKLE, SHORT_WRITES)
_WRITING: Final = (EPIPE, ENOSPC)
STREAM: Final = (*_PASSING, *_WRITING, RESET)

REFUSE = ActionKind("refuse", None, False, "the guest never answers, and runs on")
LATE = ActionKind("late", _SECONDS, False, "the guest suspends so much later")
CRASH = ActionKind("crash", None, False, "the guest crashes")
GUEST: Final = (REFUSE, LATE, CRASH)
# fmt: on

ACTIONS: Final[Mapping[str, ActionKind]] = {
    kind.name: kind for kind in (*PROCESS, ANSWER, FAIL, HANG_UP, *MESSAGE, *STREAM, *GUEST)
}
"""Every action, by name."""

HARMLESS: Final = frozenset({"CHLD", "CONT", "URG", "WINCH"})
STOPPING: Final = frozenset({"STOP", "TSTP", "TTIN", "TTOU"})
"""Signals whose default action does not end a process, and those that stop it (signal(7))."""

WAITS: Final = frozenset({STOP, DELAY, STALL, LATE})
"""Actions whose argument is in seconds."""

DEATHS: Final[Mapping[str, str]] = {"kill": "KILL", "abort": "ABRT"}
"""Short forms of die(SIGNAL): a person's SIGKILL, and a failed assertion in a library."""


def admitted(point: Point) -> tuple[ActionKind, ...]:
    """What can be done at `point`, at one side or on one channel at least."""
    return _ADMITTED[point.kind](point)


def sides(point: Point, kind: ActionKind) -> frozenset[Side]:
    """The sides at which `kind` can be done at `point`, which admits it; empty for the link and the
    tunnel."""
    if kind in _WRITING and point.kind is Kind.STREAM:
        # The source writes the main stream, the destination the back channel.
        return point.sides & {Side.DESTINATION if point.of == "back" else Side.SOURCE}
    return point.sides


def on_pipe(point: Point, kind: ActionKind) -> bool:
    """Whether `kind` can be done at `point` on libxl's pipes, whose messages have no sequence
    numbers."""
    return point.on_pipe and kind is not WRONG_SEQUENCE


def _of_message(point: Point) -> tuple[ActionKind, ...]:
    rows = _MESSAGE_OF_HELPER if point.who is Who.HELPER else _MESSAGE_OF_CONTROLLER
    assert point.moment is not None
    kinds = rows[point.moment]
    without: set[ActionKind] = set() if _is_followed(point.of) else {REORDER}
    if point.of == "complete" and point.moment is Moment.AFTER_ANSWER:
        without.add(FAIL)  # nothing is left that could fail
    return tuple(kind for kind in kinds if kind not in without)


def _is_followed(name: str) -> bool:
    """Whether the sender of a message may send another before it is answered."""
    message = CATALOGUE[name]
    if message.sender is Sender.CONTROLLER:
        return name == "abort"
    return message.answer is Answer.NONE and name != "hello"


_MESSAGE_OF_HELPER: Final[Mapping[Moment, tuple[ActionKind, ...]]] = {
    Moment.BEFORE_SEND: (*PROCESS, FAIL, HANG_UP, *MESSAGE),
    Moment.AFTER_SEND: (*PROCESS, HANG_UP),
    Moment.BEFORE_ANSWER: (*PROCESS, ANSWER, FAIL, HANG_UP, DROP),
    Moment.AFTER_ANSWER: (*PROCESS, FAIL, HANG_UP),
}
_MESSAGE_OF_CONTROLLER: Final[Mapping[Moment, tuple[ActionKind, ...]]] = {
    Moment.HEARD: (*PROCESS, HANG_UP, DROP),
    Moment.BEFORE_SEND: (*PROCESS, FAIL, HANG_UP, *MESSAGE),
    Moment.AFTER_SEND: (*PROCESS, HANG_UP),
    Moment.BEFORE_ANSWER: (*PROCESS, ANSWER, FAIL, HANG_UP, *_MANGLE, WRONG_SEQUENCE),
    Moment.AFTER_ANSWER: (*PROCESS, HANG_UP),
}


def _of_handshake(point: Point) -> tuple[ActionKind, ...]:
    if point.moment is None:
        return _ON_LINK
    return _HANDSHAKE_OF_CONTROLLER[point.moment]


_HANDSHAKE_OF_CONTROLLER: Final[Mapping[Moment, tuple[ActionKind, ...]]] = {
    Moment.BEFORE_SEND: (*PROCESS, FAIL, HANG_UP, DROP, DUPLICATE, GARBAGE, TRUNCATE),
    Moment.AFTER_SEND: (*PROCESS, HANG_UP),
    Moment.HEARD: (*PROCESS, FAIL, HANG_UP, DROP),
}
_ON_LINK: Final = (*_PASSING, RESET)


def _of_record(point: Point) -> tuple[ActionKind, ...]:
    writing = _WRITING if point.moment is Moment.WRITE else ()
    return (*PROCESS, *RECORD, *_PASSING, *writing, RESET)


def _of_stream(point: Point) -> tuple[ActionKind, ...]:
    if point.who in {Who.LINK, Who.TUNNEL}:
        return _ON_LINK
    return (*PROCESS, *STREAM)


_ADMITTED: Final[Mapping[Kind, Callable[[Point], tuple[ActionKind, ...]]]] = {
    Kind.MESSAGE: _of_message,
    Kind.HANDSHAKE: _of_handshake,
    Kind.MILESTONE: lambda _point: PROCESS,
    Kind.PHASE: lambda _point: (*PROCESS, FAIL),
    Kind.RECORD: _of_record,
    Kind.STREAM: _of_stream,
    Kind.GUEST: lambda _point: GUEST,
    Kind.STEP: lambda _point: PROCESS,
}
