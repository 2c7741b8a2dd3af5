"""The stream reader: what each record does, phases, failures (libxl_stream_read.c)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.toolstack.rules.stream import (
    OutOfTurn,
    PostcopyTransitionCallback,
    StartHelper,
    Stopped,
)
from xen_save_helper.toolstack.rules.stream_read import (
    MAX_QUEUED,
    Actions,
    AnswerCheckpoint,
    CancelRead,
    CheckpointResult,
    CheckpointStateCallback,
    Keep,
    Log,
    ReaderAction,
    ReadHeader,
    ReadPhase,
    ReadRecord,
    StreamReader,
)

END = RecordType.END
LIBXC_CONTEXT = RecordType.LIBXC_CONTEXT
XENSTORE = RecordType.EMULATOR_XENSTORE_DATA
CONTEXT = RecordType.EMULATOR_CONTEXT
TRANSITION_END = RecordType.POSTCOPY_TRANSITION_END
READ = (ReadRecord(),)


def started(
    *, device_model: bool = True, stream_type: StreamType = StreamType.PLAIN
) -> StreamReader:
    """A reader that is waiting for its first record."""
    reader = StreamReader(device_model=device_model, stream_type=stream_type)
    assert reader.start() == (ReadHeader(),)
    assert reader.header_done() == READ
    return reader


def at_work(
    *, device_model: bool = True, stream_type: StreamType = StreamType.PLAIN
) -> StreamReader:
    """A reader whose helper is running."""
    reader = started(device_model=device_model, stream_type=stream_type)
    assert reader.record_done(LIBXC_CONTEXT, b"") == (StartHelper(),)
    return reader


def feed(reader: StreamReader, *numbers: int) -> Actions:
    """Give records, and have them kept if asked to; return the last actions."""
    actions: Actions = ()
    for number in numbers:
        actions = reader.record_done(number, b"body")
        while actions and isinstance(actions[-1], Keep):
            actions = reader.processed(0)
    return actions


def refused(actions: Actions, *expected: ReaderAction) -> str:
    """Return the logged problem; `expected` must have been done after it."""
    assert isinstance(actions[0], Log)
    assert actions[1:] == expected
    return actions[0].problem


class TestPlain:
    def test_records_are_read_one_by_one_and_end_stops(self) -> None:
        reader = at_work()
        assert reader.helper_done(0) == READ
        assert reader.record_done(XENSTORE, b"x") == (Keep(XENSTORE, b"x"),)
        assert reader.processed(0) == READ
        assert reader.record_done(CONTEXT, b"c") == (Keep(CONTEXT, b"c"),)
        assert reader.processed(0) == READ
        assert reader.record_done(END, b"") == (Stopped(0),)

    def test_a_bad_header_stops(self) -> None:
        reader = StreamReader(device_model=True)
        reader.start()
        assert reader.read_failed(-3) == (Stopped(-3),)

    def test_a_stream_that_ends_early_stops(self) -> None:
        assert started().read_failed(-3) == (Stopped(-3),)

    def test_optional_records_are_skipped(self) -> None:
        assert started().record_done(0x80001234, b"whatever") == READ

    def test_unknown_mandatory_record(self) -> None:
        problem = refused(started().record_done(0x77, b""), Stopped(Error.FAIL))
        assert "0x00000077" in problem

    @pytest.mark.parametrize(
        "number", [TRANSITION_END, RecordType.CHECKPOINT_END, RecordType.CHECKPOINT_STATE]
    )
    def test_ends_of_phases_that_are_not_there(self, number: RecordType) -> None:
        problem = refused(started().record_done(number, b""), Stopped(Error.FAIL))
        assert number.name in problem

    @pytest.mark.parametrize("number", [XENSTORE, CONTEXT])
    def test_emulator_records_without_a_device_model(self, number: RecordType) -> None:
        reader = started(device_model=False)
        assert "no device model" in refused(reader.record_done(number, b""), Stopped(Error.FAIL))

    def test_emulator_data_that_cannot_be_kept(self) -> None:
        reader = started()
        reader.record_done(XENSTORE, b"")
        assert reader.processed(-3) == (Stopped(-3),)

    def test_a_second_libxc_context(self) -> None:
        reader = at_work()
        reader.helper_done(0)
        assert "second" in refused(reader.record_done(LIBXC_CONTEXT, b""), Stopped(Error.FAIL))

    def test_end_without_a_domain(self) -> None:
        problem = refused(started().record_done(END, b""), Stopped(Error.FAIL))
        assert "no domain" in problem

    def test_abort_takes_the_read_back(self) -> None:
        assert started().abort(-22) == (CancelRead(), Stopped(-22))

    def test_abort_while_libxc_has_the_stream(self) -> None:
        assert at_work().abort(-22) == (Stopped(-22),)

    def test_nothing_after_the_end(self) -> None:
        reader = at_work()
        reader.abort(-22)
        assert reader.helper_done(0) == ()
        assert reader.abort(-3) == ()
        assert reader.start_postcopy_transition() == ()


class TestTransition:
    def test_its_records_then_libxc_then_end_alone(self) -> None:
        reader = at_work()
        assert reader.start_postcopy_transition() == READ
        assert feed(reader, XENSTORE, CONTEXT) == READ
        assert feed(reader, TRANSITION_END) == (PostcopyTransitionCallback(0),)
        assert reader.helper_done(0) == READ
        assert feed(reader, END) == (Stopped(0),)

    @pytest.mark.parametrize("number", [XENSTORE, CONTEXT, LIBXC_CONTEXT, TRANSITION_END])
    def test_after_it_end_alone(self, number: RecordType) -> None:
        reader = at_work()
        reader.start_postcopy_transition()
        feed(reader, TRANSITION_END)
        reader.helper_done(0)
        actions = reader.record_done(number, b"")
        assert "only END" in refused(actions, Stopped(Error.FAIL))

    @pytest.mark.parametrize("number", [END, LIBXC_CONTEXT, RecordType.CHECKPOINT_END, 0x77])
    def test_what_cannot_stand_in_it_is_answered_to_libxc(self, number: int) -> None:
        reader = at_work()
        reader.start_postcopy_transition()
        refused(reader.record_done(number, b""), PostcopyTransitionCallback(Error.FAIL))
        assert reader.running
        assert reader.helper_done(-3) == (Stopped(-3),)

    def test_a_broken_link_in_it_is_answered_to_libxc(self) -> None:
        reader = at_work()
        reader.start_postcopy_transition()
        assert reader.read_failed(-3) == (PostcopyTransitionCallback(-3),)
        assert reader.helper_done(0) == (Stopped(-3),)

    def test_the_helper_dies_in_it(self) -> None:
        reader = at_work()
        reader.start_postcopy_transition()
        assert reader.abort(-3) == (CancelRead(), PostcopyTransitionCallback(-3))
        assert reader.helper_done(-3) == (Stopped(-3),)

    def test_one_only(self) -> None:
        reader = at_work()
        reader.start_postcopy_transition()
        feed(reader, TRANSITION_END)
        with pytest.raises(OutOfTurn):
            reader.start_postcopy_transition()

    def test_not_in_a_checkpointed_stream(self) -> None:
        with pytest.raises(OutOfTurn, match="checkpointed"):
            at_work(stream_type=StreamType.REMUS).start_postcopy_transition()

    def test_not_without_the_helper(self) -> None:
        with pytest.raises(OutOfTurn, match="helper does not run"):
            started().start_postcopy_transition()


class TestCheckpoint:
    def test_records_are_queued_until_its_end_and_then_processed(self) -> None:
        reader = at_work(stream_type=StreamType.REMUS)
        assert reader.start_checkpoint() == READ
        assert reader.record_done(XENSTORE, b"x") == READ
        assert reader.record_done(CONTEXT, b"c") == READ
        assert reader.record_done(RecordType.CHECKPOINT_END, b"") == (Keep(XENSTORE, b"x"),)
        assert reader.processed(0) == (Keep(CONTEXT, b"c"),)
        assert reader.processed(0) == (AnswerCheckpoint(CheckpointResult.SUCCESS),)
        assert reader.phase is ReadPhase.NORMAL

    def test_a_link_that_breaks_while_queueing_is_failover(self) -> None:
        reader = at_work(stream_type=StreamType.REMUS)
        reader.start_checkpoint()
        reader.record_done(XENSTORE, b"x")
        assert reader.read_failed(-3) == (AnswerCheckpoint(CheckpointResult.FAILOVER),)
        assert reader.helper_done(0) == (Stopped(0),)

    def test_a_failure_while_processing_is_an_error(self) -> None:
        reader = at_work(stream_type=StreamType.REMUS)
        reader.start_checkpoint()
        reader.record_done(XENSTORE, b"x")
        reader.record_done(RecordType.CHECKPOINT_END, b"")
        assert reader.processed(-3) == (AnswerCheckpoint(CheckpointResult.ERROR),)

    def test_its_memory_is_bounded(self) -> None:
        reader = at_work(stream_type=StreamType.REMUS)
        reader.start_checkpoint()
        body = bytes(MAX_QUEUED // 4)
        for _ in range(3):
            assert reader.record_done(CONTEXT, body) == READ
        refused(reader.record_done(CONTEXT, body), AnswerCheckpoint(CheckpointResult.FAILOVER))

    def test_many_skipped_records_do_not_recurse(self) -> None:
        reader = at_work(stream_type=StreamType.REMUS)
        reader.start_checkpoint()
        for _ in range(5000):
            assert reader.record_done(0x80000001, b"") == READ
        actions = reader.record_done(RecordType.CHECKPOINT_END, b"")
        assert actions == (AnswerCheckpoint(CheckpointResult.SUCCESS),)

    def test_state(self) -> None:
        reader = at_work(stream_type=StreamType.COLO)
        assert reader.start_checkpoint_state() == READ
        actions = reader.record_done(RecordType.CHECKPOINT_STATE, b"\1\0\0\0")
        assert actions == (CheckpointStateCallback(0, b"\1\0\0\0"),)

    def test_a_failure_in_state_is_answered(self) -> None:
        reader = at_work(stream_type=StreamType.COLO)
        reader.start_checkpoint_state()
        assert reader.read_failed(-3) == (CheckpointStateCallback(-3, b""),)

    @pytest.mark.parametrize("start", ["start_checkpoint", "start_checkpoint_state"])
    def test_not_in_a_plain_stream(self, start: str) -> None:
        with pytest.raises(OutOfTurn, match="plain"):
            getattr(at_work(), start)()


class EveryOrder(RuleBasedStateMachine):
    """Drives a reader through any stream and any order of other events."""

    @initialize(stream_type=st.sampled_from(StreamType), device_model=st.booleans())
    def begin(self, stream_type: StreamType, device_model: bool) -> None:
        self.reader = StreamReader(device_model=device_model, stream_type=stream_type)
        self.plain = stream_type is StreamType.PLAIN
        self.read: str | None = None
        self.keeping = False
        self.helper = "not started"
        self.waiting = ""
        self.stopped: list[int] = []
        self.transitions: list[int] = []
        self.failed = False
        self.do(self.reader.start())

    def do(self, actions: Actions) -> None:
        for action in actions:
            self.do_one(action)

    def do_one(self, action: ReaderAction) -> None:
        assert not self.stopped, "no action after the end"
        match action:
            case ReadHeader() | ReadRecord():
                assert self.read is None, "at most one read in progress"
                assert self.helper != "running" or self.waiting, "libxc has the stream"
                self.read = "header" if isinstance(action, ReadHeader) else "record"
            case CancelRead():
                assert self.read is not None
                self.read = None
            case Log():
                self.failed = True
            case Keep():
                assert not self.keeping
                self.keeping = True
            case StartHelper():
                assert self.helper == "not started"
                self.helper = "running"
            case PostcopyTransitionCallback(rc):
                assert self.waiting == "postcopy" or self.helper == "ended"
                self.transitions.append(rc)
                self.waiting = ""
            case AnswerCheckpoint() | CheckpointStateCallback():
                assert self.waiting == "checkpoint" or self.helper == "ended"
                self.waiting = ""
            case Stopped(rc):
                assert self.read is None
                self.stopped.append(rc)

    @precondition(lambda self: self.read)
    @rule(number=st.sampled_from([*RecordType, *RecordType, 0x77, 0x80000077]))
    def read_done(self, number: int) -> None:
        what, self.read = self.read, None
        if what == "header":
            self.do(self.reader.header_done())
        else:
            self.do(self.reader.record_done(number, b"body"))

    @precondition(lambda self: self.read)
    @rule()
    def read_fails(self) -> None:
        self.read = None
        self.failed |= not self.stopped
        self.do(self.reader.read_failed(-3))

    @precondition(lambda self: self.keeping)
    @rule(rc=st.sampled_from([0, 0, -3]))
    def kept(self, rc: int) -> None:
        self.keeping = False
        self.failed |= bool(rc)
        self.do(self.reader.processed(rc))

    @precondition(lambda self: self.helper == "running" and not self.waiting)
    @rule(what=st.sampled_from(["postcopy", "checkpoint", "checkpoint state"]))
    def callback(self, what: str) -> None:
        starts: dict[str, Callable[[], Actions]] = {
            "postcopy": self.reader.start_postcopy_transition,
            "checkpoint": self.reader.start_checkpoint,
            "checkpoint state": self.reader.start_checkpoint_state,
        }
        self.waiting = what.split(maxsplit=1)[0]
        try:
            actions = starts[what]()
        except OutOfTurn:
            actions = ()
        if not actions:
            self.waiting = ""
        self.do(actions)

    @precondition(lambda self: self.helper == "running" and not self.keeping)
    @rule(rc=st.sampled_from([0, 0, -3]))
    def helper_ends(self, rc: int) -> None:
        self.helper = "ended"
        self.failed |= not self.stopped and bool(rc or self.waiting)
        if rc:
            self.do(self.reader.abort(rc))  # the join's part
        self.do(self.reader.helper_done(rc))

    @precondition(lambda self: not self.keeping)
    @rule()
    def abort(self) -> None:
        self.failed |= not self.stopped
        self.do(self.reader.abort(-22))

    @invariant()
    def one_end(self) -> None:
        assert len(self.stopped) <= 1
        assert len(self.transitions) <= 1
        assert self.reader.running is not bool(self.stopped)
        if self.stopped == [0]:
            assert self.helper == "ended", "success without a domain"

    @invariant()
    def never_stuck(self) -> None:
        assert self.stopped or self.read or self.keeping or self.helper == "running"

    @invariant()
    def a_plain_stream_that_failed_does_not_end_well(self) -> None:
        if self.stopped and self.plain and self.failed:
            assert self.stopped[0]

    def teardown(self) -> None:
        """From wherever it is, it ends if the other side sends nothing more."""
        if not hasattr(self, "stopped"):
            return
        for _ in range(6):
            if self.keeping:
                self.kept(0)
            elif self.read:
                self.read_fails()
            elif self.helper == "running":
                self.helper_ends(0)
        assert len(self.stopped) == 1
        self.a_plain_stream_that_failed_does_not_end_well()


EveryOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=25)
TestEveryOrder = EveryOrder.TestCase
