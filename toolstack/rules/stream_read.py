"""The rules of libxl_stream_read.c, without its I/O: what is read, what a record does, who is told.

Three tables say it. `READING`: what happens to a record that has been read, by phase. `RECORDS`:
what each record does, and in which phases it may come. `ON_FAILURE`: who is told of a failure.
What differs from libxl, where the contents of a stream trip an assertion or pass unnoticed:

- END within a checkpoint or transition, END before LIBXC_CONTEXT and a second LIBXC_CONTEXT are
  errors. libxl, respectively, aborts, makes an empty domain and starts a second helper.
- Records that the specification calls optional (bit 31) are skipped.
- It is an error if the helper ends within a callback of its own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.toolstack.rules.stream import (
    OutOfTurn,
    PostcopyTransitionCallback,
    StartHelper,
    Stopped,
)


class ReadPhase(Enum):
    """SRS_PHASE_*."""

    NORMAL = "normal"
    CHECKPOINT_BUFFERING = "checkpoint buffering"
    CHECKPOINT_UNBUFFERING = "checkpoint unbuffering"
    CHECKPOINT_STATE = "checkpoint state"
    POSTCOPY_TRANSITION = "postcopy transition"


class CheckpointResult(IntEnum):
    """XGR_CHECKPOINT_*: the answer to libxc's restore."""

    ERROR = 0
    SUCCESS = 1
    FAILOVER = 2


class Reading(Enum):
    """`stream_continue`: what happens to records in a phase."""

    ONE_BY_ONE = "each is processed as soon as it is read"
    QUEUE = "they are queued up to CHECKPOINT_END, which begins the unbuffering"
    UNQUEUE = "the queued ones are processed, none is read"


READING: Final[Mapping[ReadPhase, Reading]] = {
    ReadPhase.NORMAL: Reading.ONE_BY_ONE,
    ReadPhase.POSTCOPY_TRANSITION: Reading.ONE_BY_ONE,
    ReadPhase.CHECKPOINT_STATE: Reading.ONE_BY_ONE,
    ReadPhase.CHECKPOINT_BUFFERING: Reading.QUEUE,
    ReadPhase.CHECKPOINT_UNBUFFERING: Reading.UNQUEUE,
}


class RecordEffect(Enum):
    """What a record does."""

    STOP = "the stream stops, rc 0"
    HELPER = "start the helper; reading goes on when it has ended"
    KEEP = "keep it for the device model"
    CALLBACK = "end of the phase: its callback, rc 0"


_DATA_PHASES: Final = frozenset(ReadPhase) - {ReadPhase.CHECKPOINT_STATE}

# fmt: off
RECORDS: Final[Mapping[RecordType, tuple[RecordEffect, frozenset[ReadPhase]]]] = {
    RecordType.END:
        (RecordEffect.STOP, frozenset({ReadPhase.NORMAL})),
    RecordType.LIBXC_CONTEXT:
        (RecordEffect.HELPER, frozenset({ReadPhase.NORMAL})),
    RecordType.EMULATOR_XENSTORE_DATA:
        (RecordEffect.KEEP, _DATA_PHASES),
    RecordType.EMULATOR_CONTEXT:
        (RecordEffect.KEEP, _DATA_PHASES),
    RecordType.CHECKPOINT_END:
        (RecordEffect.CALLBACK, frozenset({ReadPhase.CHECKPOINT_UNBUFFERING})),
    RecordType.CHECKPOINT_STATE:
        (RecordEffect.CALLBACK, frozenset({ReadPhase.CHECKPOINT_STATE})),
    RecordType.POSTCOPY_TRANSITION_END:
        (RecordEffect.CALLBACK, frozenset({ReadPhase.POSTCOPY_TRANSITION})),
}
"""What each record does, and the phases in which it may be processed. Besides, only END may follow
a postcopy transition, and the emulator's records may come only if a device model is expected."""


class FailureReport(Enum):
    """How a failure is reported, and to whom."""

    JOIN = "the stream stops with the rc"
    FAILOVER = "checkpoint callback, XGR_CHECKPOINT_FAILOVER: what was queued is dropped"
    ERROR = "checkpoint callback, XGR_CHECKPOINT_ERROR"
    CHECKPOINT_STATE = "checkpoint state callback, the rc"
    POSTCOPY_TRANSITION = "postcopy transition callback, the rc"


ON_FAILURE: Final[Mapping[ReadPhase, FailureReport]] = {
    ReadPhase.NORMAL: FailureReport.JOIN,
    ReadPhase.CHECKPOINT_BUFFERING: FailureReport.FAILOVER,
    ReadPhase.CHECKPOINT_UNBUFFERING: FailureReport.ERROR,
    ReadPhase.CHECKPOINT_STATE: FailureReport.CHECKPOINT_STATE,
    ReadPhase.POSTCOPY_TRANSITION: FailureReport.POSTCOPY_TRANSITION,
}
"""`stream_complete(rc)`: in all phases but NORMAL the failure is libxc's answer, and it comes back
through the helper's end."""
# fmt: on


@dataclass(frozen=True)
class ReadHeader:
    """Read and check the stream's header, then report `header_done` or `read_failed`."""


@dataclass(frozen=True)
class ReadRecord:
    """Read a whole record, then report `record_done` or `read_failed`."""


@dataclass(frozen=True)
class CancelRead:
    """Stop reading, and report nothing of it."""


@dataclass(frozen=True)
class Keep:
    """Keep the body of an EMULATOR_* record for the device model, then report `processed`."""

    record: RecordType
    body: bytes


@dataclass(frozen=True)
class AnswerCheckpoint:
    """Answer libxc's checkpoint."""

    result: CheckpointResult


@dataclass(frozen=True)
class CheckpointStateCallback:
    """Hand over the record's body (rc 0), or the failure."""

    rc: int
    body: bytes


@dataclass(frozen=True)
class Log:
    """Log why a record was refused."""

    problem: str


ReaderAction = (
    ReadHeader
    | ReadRecord
    | CancelRead
    | StartHelper
    | Keep
    | AnswerCheckpoint
    | CheckpointStateCallback
    | PostcopyTransitionCallback
    | Log
    | Stopped
)
Actions = tuple[ReaderAction, ...]

MAX_QUEUED: Final = 256 << 20
"""Bytes that the records of one checkpoint may hold; libxl has no limit."""

RECORD_OVERHEAD: Final = 64
"""Bytes that a queued record counts besides its body."""

_OPTIONAL: Final = 1 << 31


class StreamReader:
    """Event in, actions out. `device_model`: the domain has one, so its records may come.

    Events on a stream that has stopped, or never ran, are ignored; of the others, those that
    cannot come now raise OutOfTurn.
    """

    def __init__(self, *, device_model: bool, stream_type: StreamType = StreamType.PLAIN) -> None:
        self.running = False
        self.phase = ReadPhase.NORMAL
        self.postcopy_transitioned = False
        self.reading = False
        self.processing = False
        """A Keep is being carried out."""
        self._device_model = device_model
        self._checkpointed = stream_type is not StreamType.PLAIN
        self._helper_started = False
        self._helper_running = False
        self._broken = 0
        """The rc after which our place in the stream is unknown, or its contents untrusted."""
        self._queue: deque[tuple[int, bytes]] = deque()
        self._queued = 0

    def start(self) -> Actions:
        """libxl__stream_read_start."""
        self.running = self.reading = True
        return (ReadHeader(),)

    def start_postcopy_transition(self) -> Actions:
        """libxl__stream_read_start_postcopy_transition: once, and in a plain stream."""
        return self._take_over(ReadPhase.POSTCOPY_TRANSITION, checkpointed=False)

    def start_checkpoint(self) -> Actions:
        """libxl__stream_read_start_checkpoint: libxc has handed the stream over."""
        return self._take_over(ReadPhase.CHECKPOINT_BUFFERING, checkpointed=True)

    def start_checkpoint_state(self) -> Actions:
        """libxl__stream_read_checkpoint_state."""
        return self._take_over(ReadPhase.CHECKPOINT_STATE, checkpointed=True)

    def header_done(self) -> Actions:
        """The header has been read, and is good."""
        self._end_read()
        return self._continue()

    def record_done(self, number: int, body: bytes) -> Actions:
        """A record has been read; `body` is without its padding."""
        self._end_read()
        self._queue.append((number, body))
        self._queued += len(body) + RECORD_OVERHEAD
        if self._queued > MAX_QUEUED:
            problem = f"more than {MAX_QUEUED} bytes of records before CHECKPOINT_END"
            return (Log(problem), *self._failed(Error.FAIL))
        return self._continue()

    def read_failed(self, rc: int) -> Actions:
        """The stream ended or broke, or what came is not a header or record."""
        self._end_read()
        return self._failed(rc)

    def processed(self, rc: int) -> Actions:
        """A Keep has been carried out, or (`rc`) failed."""
        if not self.processing:
            raise OutOfTurn("a record is reported as processed, but none is being processed")
        self.processing = False
        return self._failed(rc) if rc else self._continue()

    def helper_done(self, rc: int) -> Actions:
        """libxl__xc_domain_restore_done, once the join has had `rc`."""
        self._helper_running = False
        if not self.running:
            return ()
        actions: Actions = ()
        if self.phase is not ReadPhase.NORMAL:
            # It ended within a callback of its own.
            rc = rc or Error.FAIL
            actions = self.abort(rc)
        if self._checkpointed:
            # Failover: the domain is at a consistent checkpoint.
            return actions + self._stop(rc)
        if rc or self._broken:
            return actions + self._stop(rc or self._broken)
        return self._continue()

    def abort(self, rc: int) -> Actions:
        """libxl__stream_read_abort."""
        if not self.running:
            return ()
        self.processing = False
        if not self.reading:
            return self._failed(rc)
        self.reading = False
        return (CancelRead(), *self._failed(rc))

    def _take_over(self, phase: ReadPhase, *, checkpointed: bool) -> Actions:
        if self._checkpointed is not checkpointed:
            kind = "checkpointed" if self._checkpointed else "plain"
            raise OutOfTurn(f"{phase.value} in a {kind} stream")
        if not self.running:
            return ()
        if not self._helper_running:
            raise OutOfTurn(f"{phase.value}, but the helper does not run")
        if self.phase is not ReadPhase.NORMAL:
            raise OutOfTurn(f"{phase.value} in the phase {self.phase.value}")
        if self._broken:
            raise OutOfTurn(f"{phase.value}, but the stream broke before")
        if self.postcopy_transitioned:
            raise OutOfTurn(f"{phase.value} after a postcopy transition")
        self.phase = phase
        self._queued = 0
        return self._continue()

    def _end_read(self) -> None:
        if not self.reading:
            raise OutOfTurn("the end of a read is reported, but none is in progress")
        self.reading = False

    def _continue(self) -> Actions:
        """`stream_continue`."""
        match READING[self.phase]:
            case Reading.ONE_BY_ONE:
                self._queued = 0
                return self._process()
            case Reading.QUEUE:
                if not self._queue or self._queue[-1][0] != RecordType.CHECKPOINT_END:
                    return self._read()
                self.phase = ReadPhase.CHECKPOINT_UNBUFFERING
                return self._process()
            case Reading.UNQUEUE:
                return self._process()

    def _read(self) -> Actions:
        self.reading = True
        return (ReadRecord(),)

    def _process(self) -> Actions:
        """`process_record`, for the first record in the queue that is not skipped."""
        while self._queue:
            number, body = self._queue.popleft()
            if number & _OPTIONAL:
                continue
            if problem := self._problem(number):
                return (Log(problem), *self._failed(Error.FAIL))
            return self._do(RecordType(number), body)
        return self._read()

    def _do(self, record: RecordType, body: bytes) -> Actions:
        match RECORDS[record][0]:
            case RecordEffect.STOP:
                return self._stop(0)
            case RecordEffect.HELPER:
                self._helper_started = self._helper_running = True
                return (StartHelper(),)
            case RecordEffect.KEEP:
                self.processing = True
                return (Keep(record, body),)
            case RecordEffect.CALLBACK:
                return self._end_phase(body)

    def _problem(self, number: int) -> str | None:
        try:
            record = RecordType(number)
        except ValueError:
            return f"unrecognised record {number:#010x}"
        effect, phases = RECORDS[record]
        if self.postcopy_transitioned and record is not RecordType.END:
            return f"{record.name} after the postcopy transition, where only END may follow"
        if self.phase not in phases:
            return f"unexpected {record.name} in the phase {self.phase.value}"
        if effect is RecordEffect.HELPER and self._helper_started:
            return f"a second {record.name}"
        if effect is RecordEffect.STOP and not self._helper_started:
            return f"{record.name} before LIBXC_CONTEXT: there is no domain in the stream"
        if effect is RecordEffect.KEEP and not self._device_model:
            return f"{record.name}, but the domain has no device model"
        return None

    def _end_phase(self, body: bytes) -> Actions:
        phase, self.phase = self.phase, ReadPhase.NORMAL
        match phase:
            case ReadPhase.POSTCOPY_TRANSITION:
                self.postcopy_transitioned = True
                return (PostcopyTransitionCallback(0),)
            case ReadPhase.CHECKPOINT_STATE:
                return (CheckpointStateCallback(0, body),)
            case _:
                return (AnswerCheckpoint(CheckpointResult.SUCCESS),)

    def _failed(self, rc: int) -> Actions:
        report = ON_FAILURE[self.phase]
        self.phase = ReadPhase.NORMAL
        self._queue.clear()
        if report is not FailureReport.JOIN:
            self._broken = rc
        match report:
            case FailureReport.JOIN:
                return self._stop(rc)
            case FailureReport.FAILOVER:
                return (AnswerCheckpoint(CheckpointResult.FAILOVER),)
            case FailureReport.ERROR:
                return (AnswerCheckpoint(CheckpointResult.ERROR),)
            case FailureReport.CHECKPOINT_STATE:
                return (CheckpointStateCallback(rc, b""),)
            case FailureReport.POSTCOPY_TRANSITION:
                self.postcopy_transitioned = True
                return (PostcopyTransitionCallback(rc),)

    def _stop(self, rc: int) -> Actions:
        self.running = False
        self._queue.clear()
        return (Stopped(rc),)
