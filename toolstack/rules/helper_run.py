"""The rules of running a helper (libxl_save_callout.c), without I/O: an event in, actions out.

Two of them are stricter than libxl's. A message that is unknown, malformed or out of turn ends the
helper with an error; libxl drops it, and the helper waits for its answer for ever. And every wait
has a limit. A helper that may still be sane gets SIGTERM, so that libxc's error path runs; one that
cannot be trusted gets SIGKILL.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.causes import Cause, Why
from xen_save_helper.ipc_schema.errors import Error


class HelperPhase(Enum):
    NEW = "not started"
    STARTING = "started, has not said hello"
    RUNNING = "at work"
    ABORTING = "asked to give up"
    COMPLETED = "has sent its result"
    KILLED = "killed"
    ENDED = "reaped"


class HelperEvent(Enum):
    START_FAILED = "the process cannot be started"
    STARTED = "the process runs"
    HELLO = "the helper has said hello"
    COMPLETE = "the helper has sent its result"
    VIOLATION = "bad header, unknown or malformed message, wrong turn"
    REPLY_FAILED = "a reply cannot be written"
    CHANNEL_LOST = "end of file, connection broken"
    LIMIT = "a limit has passed: start, sign of life, answer, or abort"
    ABORT = "the caller asks"
    EXITED = "the process has ended and is reaped"


class HelperAction(Enum):
    STOP_LISTENING = "read and write no more messages"
    TERMINATE = "SIGTERM (and SIGCONT: a stopped helper must run to handle it)"
    KILL = "SIGKILL"
    LIMIT_START = "wait limits.helper_start, then LIMIT"
    LIMIT_SILENCE = "wait no longer for hello; LIMIT if there is no sign of life for too long"
    LIMIT_ABORT = "wait limits.abort, then LIMIT"
    NO_LIMIT = "wait no longer"
    DONE = "report to the caller"


class Step(NamedTuple):
    """Where an event leads. `rc` is kept unless one is set already; None stands for the event's
    own."""

    phase: HelperPhase
    rc: int | None
    actions: tuple[HelperAction, ...]


_FAIL: Final = int(Error.FAIL)
_TIMEDOUT: Final = int(Error.TIMEDOUT)
_STOP, _TERMINATE, _KILL = HelperAction.STOP_LISTENING, HelperAction.TERMINATE, HelperAction.KILL
_LIMIT_START, _LIMIT_SILENCE, _LIMIT_ABORT, _NO_LIMIT = (
    HelperAction.LIMIT_START,
    HelperAction.LIMIT_SILENCE,
    HelperAction.LIMIT_ABORT,
    HelperAction.NO_LIMIT,
)
_N, _S, _R, _A = HelperPhase.NEW, HelperPhase.STARTING, HelperPhase.RUNNING, HelperPhase.ABORTING
_C, _K, _E = HelperPhase.COMPLETED, HelperPhase.KILLED, HelperPhase.ENDED

# fmt: off
TABLE: Final[Mapping[tuple[HelperPhase, HelperEvent], Step]] = {
    (_N, HelperEvent.START_FAILED): Step(_E, _FAIL, (HelperAction.DONE,)),
    (_N, HelperEvent.ABORT):        Step(_E, None, (HelperAction.DONE,)),
    (_N, HelperEvent.STARTED):      Step(_S, 0, (_LIMIT_START,)),

    (_S, HelperEvent.HELLO):        Step(_R, 0, (_LIMIT_SILENCE,)),
    (_S, HelperEvent.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_S, HelperEvent.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_S, HelperEvent.CHANNEL_LOST): Step(_A, _FAIL, (_STOP, _TERMINATE, _LIMIT_ABORT)),
    (_S, HelperEvent.LIMIT):        Step(_K, _TIMEDOUT, (_STOP, _KILL)),
    (_S, HelperEvent.ABORT):        Step(_A, None, (_TERMINATE, _LIMIT_ABORT)),

    (_R, HelperEvent.COMPLETE):     Step(_C, 0, (_STOP, _LIMIT_ABORT)),
    (_R, HelperEvent.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_R, HelperEvent.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_R, HelperEvent.CHANNEL_LOST): Step(_A, _FAIL, (_STOP, _TERMINATE, _LIMIT_ABORT)),
    (_R, HelperEvent.LIMIT):        Step(_A, _TIMEDOUT, (_TERMINATE, _LIMIT_ABORT)),
    (_R, HelperEvent.ABORT):        Step(_A, None, (_TERMINATE, _LIMIT_ABORT)),

    (_A, HelperEvent.HELLO):        Step(_A, 0, ()),
    (_A, HelperEvent.COMPLETE):     Step(_C, 0, (_STOP, _LIMIT_ABORT)),
    (_A, HelperEvent.VIOLATION):    Step(_K, _FAIL, (_STOP, _KILL)),
    (_A, HelperEvent.REPLY_FAILED): Step(_K, _FAIL, (_STOP, _KILL)),
    (_A, HelperEvent.CHANNEL_LOST): Step(_A, _FAIL, (_STOP,)),
    (_A, HelperEvent.LIMIT):        Step(_K, _TIMEDOUT, (_STOP, _KILL)),
    (_A, HelperEvent.ABORT):        Step(_A, None, ()),

    # The result is known; all that remains is for the process to exit.
    (_C, HelperEvent.REPLY_FAILED): Step(_K, _FAIL, (_KILL,)),
    (_C, HelperEvent.LIMIT):        Step(_K, _TIMEDOUT, (_KILL,)),
    (_C, HelperEvent.ABORT):        Step(_C, None, (_TERMINATE,)),

    (_K, HelperEvent.ABORT):        Step(_K, None, ()),
} | {
    (phase, HelperEvent.EXITED):    Step(_E, 0, (_STOP, _NO_LIMIT, HelperAction.DONE))
    for phase in (_S, _R, _A, _C, _K)
}
# fmt: on
"""An event without a row changes nothing: it comes from something already stopped."""


_CAUSES: Final[Mapping[HelperEvent, Cause]] = {
    HelperEvent.VIOLATION: Cause.PROTOCOL,
    HelperEvent.REPLY_FAILED: Cause.CHANNEL,
    HelperEvent.CHANNEL_LOST: Cause.CHANNEL,
    HelperEvent.LIMIT: Cause.SILENCE,
    HelperEvent.ABORT: Cause.ABORTED,
}
_ENDED: Final = Why(Cause.HELPER)


class HelperRun:
    """One helper's run. `rc`, `reason` and `why` are those of the first failure.

    `needs_results`: this is a restore, which must send `restore_results`.
    """

    def __init__(self, *, needs_results: bool) -> None:
        self.phase = HelperPhase.NEW
        self.rc = 0
        self.reason = ""
        self.why = Why()
        self.completed = False
        self.retval = 0
        self.errnoval = 0
        self._needs_results = needs_results

    def event(
        self, event: HelperEvent, reason: str = "", rc: int = 0, errnoval: int = 0
    ) -> tuple[HelperAction, ...]:
        """The actions for `event`. `rc` is an ABORT's, `errnoval` that of a failed call."""
        step = TABLE.get((self.phase, event))
        if step is None:
            return ()
        cause = _CAUSES.get(event, Cause.SYSTEM)
        self._fail(rc if step.rc is None else step.rc, reason, Why(cause, errnoval))
        self.phase = step.phase
        return step.actions

    def results(self) -> None:
        """`restore_results` was received."""
        self._needs_results = False

    def complete(self, retval: int, errnoval: int) -> tuple[HelperAction, ...]:
        """`complete` was received: libxc's result."""
        actions = self.event(HelperEvent.COMPLETE)
        if actions:
            self.completed, self.retval, self.errnoval = True, retval, errnoval
        return actions

    def exited(self, status: int, last_words: str = "") -> tuple[HelperAction, ...]:
        """The process has been reaped. `status` is its exit status, negative for a signal;
        `last_words` is the last line of its stderr."""
        actions = self.event(HelperEvent.EXITED)
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

    def _fail(self, rc: int, reason: str, why: Why = _ENDED) -> None:
        if rc and not self.rc:
            self.rc, self.reason, self.why = rc, reason, why
