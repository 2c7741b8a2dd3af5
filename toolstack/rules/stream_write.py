"""The rules of libxl_stream_write.c, without its I/O: what is written, when, and who is told.

Two tables say it. `SEQUENCES`: what causes which records, and what comes after the last of them.
`ON_FAILURE`: who is told of a failure, by the phase in which it happens.

The most important rule is a step of the postcopy transition: the point of no return comes before
the first byte of POSTCOPY_TRANSITION_END can be written. Once that record is out the guest may run
at the destination, and a guest runs in one place, so whoever drives the stream first records that
it will not resume the guest here (`PointOfNoReturn`, then `promised`). If that fails, nothing is
promised: the record is not written, and the transition fails as it does if any of its records
cannot be written.

What differs from libxl:

- The point of no return. libxl tells its caller the outcome after the transition; that is too late
  for a caller that dies in between.
- An abort cancels the write that is in flight; libxl leaves it running.
- Nothing more is written after half a record. If its helper failed during a transition or
  checkpoint, libxl goes on with END, which the other side's helper would take for libxc's.
- An event out of turn, such as a second postcopy transition, raises `OutOfTurn` instead of failing
  an assertion: a helper can cause it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.stream import (
    POINT_OF_NO_RETURN,
    OutOfTurn,
    PointOfNoReturn,
    PostcopyTransitionCallback,
    StartHelper,
    Stopped,
)


class WritePhase(Enum):
    """SWS_PHASE_*."""

    NORMAL = "normal"
    CHECKPOINT = "checkpoint"
    CHECKPOINT_STATE = "checkpoint state"
    POSTCOPY_TRANSITION = "postcopy transition"


class Part(Enum):
    """What is written, whole or not at all: the stream's header, or a record."""

    HEADER = "stream header"
    LIBXC_CONTEXT = "libxc header"
    EMULATOR_XENSTORE_DATA = "emulator xenstore record"
    EMULATOR_CONTEXT = "emulator record"
    END = "end record"
    CHECKPOINT_END = "checkpoint end record"
    CHECKPOINT_STATE = "checkpoint state"
    POSTCOPY_TRANSITION_END = "postcopy transition end record"


Step = Part | PointOfNoReturn
"""What a sequence is made of."""


class Then(Enum):
    """What follows the last step of a sequence."""

    HELPER = "start the helper"
    STOP = "the stream stops, rc 0"
    CHECKPOINT_CALLBACK = "checkpoint callback, rc 0"
    POSTCOPY_TRANSITION_CALLBACK = "postcopy transition callback, rc 0"


class Trigger(Enum):
    """What makes the stream write; the helper's end comes in two kinds, by what preceded it."""

    START = "start"
    CHECKPOINT = "start_checkpoint"
    CHECKPOINT_STATE = "start_checkpoint_state"
    POSTCOPY_TRANSITION = "start_postcopy_transition"
    HELPER_DONE = "helper_done"
    HELPER_DONE_TRANSITIONED = "helper_done, after a postcopy transition"


EMULATOR: Final = (Part.EMULATOR_XENSTORE_DATA, Part.EMULATOR_CONTEXT)
"""Written only if there is a device model."""

# fmt: off
SEQUENCES: Final[Mapping[Trigger, tuple[WritePhase, tuple[Step, ...], Then]]] = {
    Trigger.START:
        (WritePhase.NORMAL, (Part.HEADER, Part.LIBXC_CONTEXT), Then.HELPER),
    Trigger.CHECKPOINT:
        (WritePhase.CHECKPOINT, (*EMULATOR, Part.CHECKPOINT_END), Then.CHECKPOINT_CALLBACK),
    Trigger.CHECKPOINT_STATE:
        (WritePhase.CHECKPOINT_STATE, (Part.CHECKPOINT_STATE,), Then.CHECKPOINT_CALLBACK),
    Trigger.POSTCOPY_TRANSITION:
        (WritePhase.POSTCOPY_TRANSITION,
         (*EMULATOR, POINT_OF_NO_RETURN, Part.POSTCOPY_TRANSITION_END),
         Then.POSTCOPY_TRANSITION_CALLBACK),
    Trigger.HELPER_DONE:
        (WritePhase.NORMAL, (*EMULATOR, Part.END), Then.STOP),
    Trigger.HELPER_DONE_TRANSITIONED:
        (WritePhase.NORMAL, (Part.END,), Then.STOP),
}
"""The phase that a cause sets, its steps (what is written, and the point of no return), and what
follows. The phase is NORMAL again before a callback is called."""

ON_FAILURE: Final[Mapping[WritePhase, Then]] = {
    WritePhase.NORMAL: Then.STOP,
    WritePhase.CHECKPOINT: Then.CHECKPOINT_CALLBACK,
    WritePhase.CHECKPOINT_STATE: Then.CHECKPOINT_CALLBACK,
    WritePhase.POSTCOPY_TRANSITION: Then.POSTCOPY_TRANSITION_CALLBACK,
}
"""`stream_complete(rc)`: in all phases but NORMAL the failure is libxc's answer, and it comes back
through the helper's end."""
# fmt: on


@dataclass(frozen=True)
class Write:
    """Write `part`, then report `write_done`; at once if there is no emulator xenstore data."""

    part: Part


@dataclass(frozen=True)
class CancelWrite:
    """Cancel the write in flight; it reports nothing any more."""


@dataclass(frozen=True)
class CheckpointCallback:
    """The checkpoint's (or checkpoint state's) records are out, or could not be written."""

    rc: int


WriterAction = (
    PointOfNoReturn
    | Write
    | CancelWrite
    | StartHelper
    | CheckpointCallback
    | PostcopyTransitionCallback
    | Stopped
)
Actions = tuple[WriterAction, ...]


class StreamWriter:
    """Event in, actions out. `device_model`: the domain has one, and its state is written.

    Events on a stream that has stopped, or never ran, are ignored; of the others, those that
    cannot come now raise OutOfTurn.
    """

    def __init__(self, *, device_model: bool, stream_type: StreamType = StreamType.PLAIN) -> None:
        self.running = False
        self.phase = WritePhase.NORMAL
        self.postcopy_transitioned = False
        """Whether a transition has been tried; whether it succeeded is in the callback's rc."""
        self.writing: Part | None = None
        self.promising = False
        """Whether the point of no return is being recorded."""
        self._device_model = device_model
        self._checkpointed = stream_type is not StreamType.PLAIN
        self._helper_running = False
        self._broken = 0
        """The rc of a part left half written, or of a failed promise."""
        self._left: tuple[Step, ...] = ()
        self._then = Then.STOP

    def start(self) -> Actions:
        """libxl__stream_write_start."""
        self.running = True
        return self._begin(Trigger.START)

    def start_checkpoint(self) -> Actions:
        """libxl__stream_write_start_checkpoint: libxc has handed the stream over."""
        self._need_turn(Trigger.CHECKPOINT, checkpointed=True)
        return self._begin(Trigger.CHECKPOINT) if self.running else ()

    def start_checkpoint_state(self) -> Actions:
        """libxl__stream_write_checkpoint_state."""
        self._need_turn(Trigger.CHECKPOINT_STATE, checkpointed=True)
        return self._begin(Trigger.CHECKPOINT_STATE) if self.running else ()

    def start_postcopy_transition(self) -> Actions:
        """libxl__stream_write_start_postcopy_transition: once, and in a plain stream."""
        self._need_turn(Trigger.POSTCOPY_TRANSITION, checkpointed=False)
        return self._begin(Trigger.POSTCOPY_TRANSITION) if self.running else ()

    def write_done(self, rc: int) -> Actions:
        """The part in flight is out, or (`rc`) only some of it may be."""
        if self.writing is None:
            raise OutOfTurn("the end of a write is reported, but none is in flight")
        self.writing = None
        if rc:
            self._broken = rc
            return self._failed(rc)
        return self._next()

    def promised(self, rc: int) -> Actions:
        """The point of no return is recorded, or (`rc`) cannot be: nothing is promised, and the
        transition fails without its record."""
        if not self.promising:
            raise OutOfTurn("a promise is reported, but none was asked for")
        self.promising = False
        if rc:
            self._broken = rc
            return self._failed(rc)
        return self._next()

    def helper_done(self, rc: int) -> Actions:
        """libxl__xc_domain_save_done, once the join has had `rc` (`save_rc`)."""
        self._helper_running = False
        if not self.running:
            return ()
        actions: Actions = ()
        if self.phase is not WritePhase.NORMAL:
            # It ended within a callback of its own.
            rc = rc or Error.FAIL
            actions = self.abort(rc)
        if self._checkpointed:
            # The other side died: the caller resumes the guest here, whatever the rc.
            return actions + self._stop(0)
        if rc or self._broken:
            return actions + self._stop(rc or self._broken)
        if self.postcopy_transitioned:
            return self._begin(Trigger.HELPER_DONE_TRANSITIONED)
        return self._begin(Trigger.HELPER_DONE)

    def abort(self, rc: int) -> Actions:
        """libxl__stream_write_abort."""
        if not self.running:
            return ()
        if self.promising:
            raise OutOfTurn("an abort while the point of no return is being recorded")
        if self.writing is None:
            return self._failed(rc)
        self.writing = None
        self._broken = rc
        return (CancelWrite(), *self._failed(rc))

    def _need_turn(self, cause: Trigger, *, checkpointed: bool) -> None:
        if self._checkpointed is not checkpointed:
            kind = "checkpointed" if self._checkpointed else "plain"
            raise OutOfTurn(f"{cause.value} in a {kind} stream")
        if not self.running:
            return
        if not self._helper_running:
            raise OutOfTurn(f"{cause.value}, but the helper does not run")
        if self.phase is not WritePhase.NORMAL:
            raise OutOfTurn(f"{cause.value} in the phase {self.phase.value}")
        if self._broken:
            raise OutOfTurn(f"{cause.value}, but the stream broke before")
        if self.postcopy_transitioned:
            raise OutOfTurn(f"{cause.value} for the second time")

    def _begin(self, cause: Trigger) -> Actions:
        self.phase, steps, self._then = SEQUENCES[cause]
        self._left = tuple(step for step in steps if self._device_model or step not in EMULATOR)
        return self._next()

    def _next(self) -> Actions:
        if not self._left:
            return self._follow(self._then, 0)
        step, *left = self._left
        self._left = tuple(left)
        if isinstance(step, PointOfNoReturn):
            self.promising = True
            return (step,)
        self.writing = step
        return (Write(step),)

    def _failed(self, rc: int) -> Actions:
        return self._follow(ON_FAILURE[self.phase], rc)

    def _follow(self, then: Then, rc: int) -> Actions:
        self.phase = WritePhase.NORMAL
        self._left = ()
        match then:
            case Then.HELPER:
                self._helper_running = True
                return (StartHelper(),)
            case Then.STOP:
                return self._stop(rc)
            case Then.CHECKPOINT_CALLBACK:
                return (CheckpointCallback(rc),)
            case Then.POSTCOPY_TRANSITION_CALLBACK:
                self.postcopy_transitioned = True
                return (PostcopyTransitionCallback(rc),)

    def _stop(self, rc: int) -> Actions:
        self.running = False
        return (Stopped(rc),)


def save_rc(rc: int, retval: int, *, guest_responded: bool, earlier_rc: int) -> int:
    """Return the rc of a helper's end. `rc` is that of running it, `retval` libxc's result,
    `guest_responded` whether the guest ever answered the suspend request, and `earlier_rc` what an
    earlier step left (dss->rc)."""
    if rc or not retval:
        return rc
    if not guest_responded:
        return Error.GUEST_TIMEDOUT
    return earlier_rc or Error.FAIL
