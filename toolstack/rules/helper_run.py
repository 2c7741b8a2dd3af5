"""The rules of running a helper (libxl_save_callout.c), without I/O: an event in, actions out.

Two of them are better than libxl's. A message that is unknown, malformed or out of turn ends the
helper with an error; libxl drops it, and the helper waits for its answer for ever. And every wait
has a limit. A helper that may still be sane is ended by SIGTERM, so that libxc's error path runs;
one whose word cannot be trusted by SIGKILL.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.errors import Error


class HelperPhase(Enum):
    NEW = "not started"
    STARTING = "started, has not said hello"
    RUNNING = "at work"
    ABORTING = "asked to give up"
    COMPLETED = "has told its result"
    KILLED = "killed"
    ENDED = "reaped"


class Event(Enum):
    START_FAILED = "the process cannot be started"
    STARTED = "the process runs"
    HELLO = "the helper has said hello"
    COMPLETE = "the helper has told its result"
    VIOLATION = "bad header, unknown or malformed message, wrong turn"
    REPLY_FAILED = "a reply cannot be written"
    CHANNEL_LOST = "end of file, connection broken"
    LIMIT = "a limit is over: start, sign of life, answer, or abort"
    ABORT = "the caller asks"
    EXITED = "the process has ended and is reaped"


class Action(Enum):
    STOP_LISTENING = "read and write no more messages"
    TERMINATE = "SIGTERM (and SIGCONT: a stopped helper must run to hear it)"
    KILL = "SIGKILL"
    LIMIT_START = "wait limits.helper_start, then LIMIT"
    LIMIT_SILENCE = "wait no longer for hello; without a sign of life for so long, LIMIT"
    LIMIT_ABORT = "wait limits.abort, then LIMIT"
    NO_LIMIT = "wait no longer"
    DONE = "tell the caller"


class Step(NamedTuple):
    """Where an event leads. `rc` is kept unless one is set; None for the event's own."""

    phase: HelperPhase
    rc: int | None
    actions: tuple[Action, ...]


_FAIL: Final = int(Error.FAIL)
_TIMEDOUT: Final = int(Error.TIMEDOUT)
_STOP, _TERMINATE, _KILL = Action.STOP_LISTENING, Action.TERMINATE, Action.KILL
_LIMIT_START, _LIMIT_SILENCE, _LIMIT_ABORT, _NO_LIMIT = (
    Action.LIMIT_START,
    Action.LIMIT_SILENCE,
    Action.LIMIT_ABORT,
    Action.NO_LIMIT,
)
_N, _S, _R, _A = HelperPhase.NEW, HelperPhase.STARTING, HelperPhase.RUNNING, HelperPhase.ABORTING
_C, _K, _E = HelperPhase.COMPLETED, HelperPhase.KILLED, HelperPhase.ENDED

# fmt: off
TABLE: Final[Mapping[tuple[HelperPhase, Event], Step]] = {
    (_N, Event.START_FAILED): Step(_E, _FAIL, (Action.DONE,)),
    (_N, Event.ABORT):        Step(_E, None, (Action.DONE,)),
    (_N, Event.STARTED):      Step(_S, 0, (_LIMIT_START,)),

    (_S, Event.HELLO):        Step(_R, 0, (_LIMIT_SILENCE,)),
    (_S, Event.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_S, Event.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_S, Event.CHANNEL_LOST): Step(_A, _FAIL, (_STOP, _TERMINATE, _LIMIT_ABORT)),
    (_S, Event.LIMIT):        Step(_K, _TIMEDOUT, (_STOP, _KILL)),
    (_S, Event.ABORT):        Step(_A, None, (_TERMINATE, _LIMIT_ABORT)),

    (_R, Event.COMPLETE):     Step(_C, 0, (_STOP, _LIMIT_ABORT)),
    (_R, Event.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_R, Event.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_R, Event.CHANNEL_LOST): Step(_A, _FAIL, (_STOP, _TERMINATE, _LIMIT_ABORT)),
    (_R, Event.LIMIT):        Step(_A, _TIMEDOUT, (_TERMINATE, _LIMIT_ABORT)),
    (_R, Event.ABORT):        Step(_A, None, (_TERMINATE, _LIMIT_ABORT)),

    (_A, Event.HELLO):        Step(_A, 0, ()),
    (_A, Event.COMPLETE):     Step(_C, 0, (_STOP, _LIMIT_ABORT)),
    (_A, Event.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_A, Event.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_A, Event.CHANNEL_LOST): Step(_A, _FAIL, (_STOP,)),
    (_A, Event.LIMIT):        Step(_K, _TIMEDOUT, (_STOP, _KILL)),
    (_A, Event.ABORT):        Step(_A, None, ()),

    # Its work is told; what remains is that the process goes away.
    (_C, Event.REPLY_FAILED): Step(_K, _FAIL, (_KILL,)),
    (_C, Event.LIMIT):        Step(_K, _TIMEDOUT, (_KILL,)),
    (_C, Event.ABORT):        Step(_C, None, (_TERMINATE,)),

    (_K, Event.ABORT):        Step(_K, None, ()),
} | {
    (phase, Event.EXITED):    Step(_E, 0, (_STOP, _NO_LIMIT, Action.DONE))
    for phase in (_S, _R, _A, _C, _K)
}
# fmt: on
"""An event without a row changes nothing: it comes from something that has been stopped."""


class HelperRun:
    """One helper's run. `rc` and `reason` are those of the first failure.

    `needs_results`: a restore, which must tell `restore_results`.
    """

    def __init__(self, *, needs_results: bool) -> None:
        self.phase = HelperPhase.NEW
        self.rc = 0
        self.reason = ""
        self.completed = False
        self.retval = 0
        self.errnoval = 0
        self._needs_results = needs_results

    def event(self, event: Event, reason: str = "", rc: int = 0) -> tuple[Action, ...]:
        """What to do about `event`. `rc` is that of an ABORT."""
        step = TABLE.get((self.phase, event))
        if step is None:
            return ()
        self._fail(rc if step.rc is None else step.rc, reason)
        self.phase = step.phase
        return step.actions

    def results(self) -> None:
        """`restore_results` was told."""
        self._needs_results = False

    def complete(self, retval: int, errnoval: int) -> tuple[Action, ...]:
        """`complete` was told: libxc's result."""
        actions = self.event(Event.COMPLETE)
        if actions:
            self.completed, self.retval, self.errnoval = True, retval, errnoval
        return actions

    def exited(self, status: int, last_words: str = "") -> tuple[Action, ...]:
        """The process is reaped; `status` is its exit status, negative for a signal, `last_words`
        the last line of its stderr."""
        actions = self.event(Event.EXITED)
        if actions:
            said = f": {last_words}" if last_words else ""
            if status > 0:
                self._fail(_FAIL, f"the helper ended with exit status {status}{said}")
            elif status < 0:
                self._fail(_FAIL, f"the helper was killed by signal {-status}{said}")
            if self._needs_results:
                self._fail(_FAIL, "the helper ended without providing results")
            if not self.completed:
                self._fail(_FAIL, "the helper ended without signalling completion")
        return actions

    def _fail(self, rc: int, reason: str) -> None:
        if rc and not self.rc:
            self.rc, self.reason = rc, reason
