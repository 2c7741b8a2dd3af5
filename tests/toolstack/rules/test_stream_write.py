"""The stream writer: order of records, phases, failures (libxl_stream_write.c)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.stream import (
    OutOfTurn,
    PointOfNoReturn,
    PostcopyTransitionCallback,
    StartHelper,
    Stopped,
)
from xen_save_helper.toolstack.rules.stream_write import (
    Actions,
    CancelWrite,
    CheckpointCallback,
    Part,
    StreamWriter,
    Write,
    WritePhase,
    WriterAction,
    save_rc,
)

EMULATOR = [Part.EMULATOR_XENSTORE_DATA, Part.EMULATOR_CONTEXT]


def written(writer: StreamWriter, actions: Actions) -> tuple[list[Part], Actions]:
    """Let every write and promise succeed; return the parts, and what comes after the last."""
    parts = []
    while actions and isinstance(actions[-1], Write | PointOfNoReturn):
        if isinstance(actions[-1], PointOfNoReturn):
            actions = writer.promised(0)
        else:
            parts.append(actions[-1].part)
            actions = writer.write_done(0)
    return parts, actions


def at_the_point_of_no_return(*, device_model: bool = True) -> StreamWriter:
    """A writer in a transition, in which only what cannot be taken back is left to do."""
    writer = at_work(device_model=device_model)
    actions = writer.start_postcopy_transition()
    while actions != (PointOfNoReturn(),):
        actions = writer.write_done(0)
    return writer


def at_work(
    *, device_model: bool = True, stream_type: StreamType = StreamType.PLAIN
) -> StreamWriter:
    """A writer whose helper is running."""
    writer = StreamWriter(device_model=device_model, stream_type=stream_type)
    assert written(writer, writer.start()) == ([Part.HEADER, Part.LIBXC_CONTEXT], (StartHelper(),))
    return writer


class TestOrder:
    def test_plain_stream(self) -> None:
        writer = at_work()
        assert written(writer, writer.helper_done(0)) == ([*EMULATOR, Part.END], (Stopped(0),))

    def test_without_a_device_model_end_alone(self) -> None:
        writer = at_work(device_model=False)
        assert written(writer, writer.helper_done(0)) == ([Part.END], (Stopped(0),))

    def test_postcopy_transition_then_end_at_once(self) -> None:
        writer = at_work()
        assert written(writer, writer.start_postcopy_transition()) == (
            [*EMULATOR, Part.POSTCOPY_TRANSITION_END],
            (PostcopyTransitionCallback(0),),
        )
        assert written(writer, writer.helper_done(0)) == ([Part.END], (Stopped(0),))

    def test_checkpoints_follow_each_other_and_the_end_writes_nothing(self) -> None:
        writer = at_work(stream_type=StreamType.REMUS)
        for _ in range(3):
            assert written(writer, writer.start_checkpoint()) == (
                [*EMULATOR, Part.CHECKPOINT_END],
                (CheckpointCallback(0),),
            )
        assert writer.helper_done(0) == (Stopped(0),)

    def test_checkpoint_state(self) -> None:
        writer = at_work(stream_type=StreamType.COLO)
        assert written(writer, writer.start_checkpoint_state()) == (
            [Part.CHECKPOINT_STATE],
            (CheckpointCallback(0),),
        )


class TestFailures:
    """`stream_complete(rc)`, by phase."""

    @pytest.mark.parametrize("good", [0, 1])
    def test_normal_before_the_helper_the_stream_stops(self, good: int) -> None:
        writer = StreamWriter(device_model=True)
        writer.start()
        for _ in range(good):
            writer.write_done(0)
        assert writer.write_done(-3) == (Stopped(-3),)

    def test_normal_after_the_helper_the_stream_stops(self) -> None:
        writer = at_work()
        writer.helper_done(0)
        assert writer.write_done(-9) == (Stopped(-9),)

    @pytest.mark.parametrize("good", [0, 1])
    def test_transition_is_answered_and_the_failure_comes_back_by_the_helper(
        self, good: int
    ) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        for _ in range(good):
            writer.write_done(0)
        assert writer.write_done(-3) == (PostcopyTransitionCallback(-3),)
        assert writer.phase is WritePhase.NORMAL
        assert writer.running
        assert writer.abort(-3) == (Stopped(-3),)
        assert writer.helper_done(-3) == ()

    def test_a_record_past_the_point_of_no_return_fails_as_the_others_do(self) -> None:
        writer = at_the_point_of_no_return()
        writer.promised(0)
        assert writer.write_done(-3) == (PostcopyTransitionCallback(-3),)

    @pytest.mark.parametrize("start", ["start_checkpoint", "start_checkpoint_state"])
    def test_checkpoint_is_answered_and_the_failure_comes_back_by_the_helper(
        self, start: str
    ) -> None:
        writer = at_work(stream_type=StreamType.COLO)
        getattr(writer, start)()
        assert writer.write_done(-3) == (CheckpointCallback(-3),)
        assert writer.phase is WritePhase.NORMAL
        assert writer.running

    def test_a_helper_that_succeeds_after_a_failed_transition_does_not_end_the_stream_well(
        self,
    ) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        writer.write_done(-9)
        assert writer.helper_done(0) == (Stopped(-9),)

    def test_abort_takes_the_write_back(self) -> None:
        writer = StreamWriter(device_model=True)
        writer.start()
        assert writer.abort(-22) == (CancelWrite(), Stopped(-22))

    def test_abort_while_libxc_has_the_stream(self) -> None:
        assert at_work().abort(-22) == (Stopped(-22),)

    def test_abort_in_the_transition_is_answered_and_nothing_more_is_written(self) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        assert writer.abort(-22) == (CancelWrite(), PostcopyTransitionCallback(-22))
        assert writer.helper_done(-22) == (Stopped(-22),)

    def test_the_helper_dies_in_the_transition(self) -> None:
        """The join has had the rc, and aborted the stream, before the helper's end is reported."""
        writer = at_work()
        writer.start_postcopy_transition()
        writer.abort(-3)
        assert writer.helper_done(-3) == (Stopped(-3),)

    def test_a_helper_that_ends_well_within_its_own_callback_has_failed(self) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        assert writer.helper_done(0) == (
            CancelWrite(),
            PostcopyTransitionCallback(Error.FAIL),
            Stopped(Error.FAIL),
        )

    def test_checkpointed_stream_completes_with_0_however_the_helper_ends(self) -> None:
        writer = at_work(stream_type=StreamType.REMUS)
        assert writer.helper_done(-3) == (Stopped(0),)

    def test_nothing_after_the_end(self) -> None:
        writer = at_work()
        writer.abort(-22)
        assert writer.helper_done(0) == ()
        assert writer.abort(-3) == ()
        assert writer.start_postcopy_transition() == ()


class TestPointOfNoReturn:
    @pytest.mark.parametrize("device_model", [False, True])
    def test_it_is_right_before_the_record_that_hands_the_guest_over(
        self, device_model: bool
    ) -> None:
        writer = at_the_point_of_no_return(device_model=device_model)
        assert writer.writing is None
        assert writer.promised(0) == (Write(Part.POSTCOPY_TRANSITION_END),)

    def test_if_it_cannot_be_promised_the_transition_fails_without_the_record(self) -> None:
        writer = at_the_point_of_no_return()
        assert writer.promised(-3) == (PostcopyTransitionCallback(-3),)
        assert writer.helper_done(0) == (Stopped(-3),)

    def test_no_promise_that_was_not_asked_for(self) -> None:
        with pytest.raises(OutOfTurn, match="none was asked for"):
            at_work().promised(0)
        writer = at_the_point_of_no_return()
        writer.promised(0)
        with pytest.raises(OutOfTurn, match="none was asked for"):
            writer.promised(0)

    def test_nothing_comes_between_it_and_its_promise(self) -> None:
        writer = at_the_point_of_no_return()
        with pytest.raises(OutOfTurn, match="point of no return"):
            writer.abort(-22)
        assert writer.promised(0) == (Write(Part.POSTCOPY_TRANSITION_END),)


class TestTurns:
    def test_one_transition_only(self) -> None:
        writer = at_work()
        written(writer, writer.start_postcopy_transition())
        with pytest.raises(OutOfTurn, match="second time"):
            writer.start_postcopy_transition()

    def test_no_transition_after_a_failed_one(self) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        writer.write_done(-3)
        with pytest.raises(OutOfTurn):
            writer.start_postcopy_transition()

    def test_no_transition_within_a_transition(self) -> None:
        writer = at_work()
        writer.start_postcopy_transition()
        with pytest.raises(OutOfTurn, match="in the phase postcopy transition"):
            writer.start_postcopy_transition()
        assert writer.writing is Part.EMULATOR_XENSTORE_DATA

    @pytest.mark.parametrize("stream_type", [StreamType.REMUS, StreamType.COLO])
    def test_a_checkpointed_stream_has_no_transition(self, stream_type: StreamType) -> None:
        with pytest.raises(OutOfTurn, match="checkpointed"):
            at_work(stream_type=stream_type).start_postcopy_transition()

    @pytest.mark.parametrize("start", ["start_checkpoint", "start_checkpoint_state"])
    def test_a_plain_stream_has_no_checkpoint(self, start: str) -> None:
        with pytest.raises(OutOfTurn, match="plain"):
            getattr(at_work(), start)()

    def test_no_transition_without_a_helper(self) -> None:
        writer = StreamWriter(device_model=True)
        writer.start()
        with pytest.raises(OutOfTurn, match="helper does not run"):
            writer.start_postcopy_transition()

    def test_no_end_of_a_write_that_is_not_in_flight(self) -> None:
        with pytest.raises(OutOfTurn, match="none is in flight"):
            at_work().write_done(0)


@pytest.mark.parametrize(
    ("rc", "retval", "guest_responded", "earlier_rc", "want"),
    [
        (0, 0, True, 0, 0),
        (0, 0, False, 0, 0),
        (-22, -1, False, -8, -22),
        (-3, 0, True, 0, -3),
        (0, -1, False, 0, Error.GUEST_TIMEDOUT),
        (0, -1, False, -9, Error.GUEST_TIMEDOUT),
        (0, -1, True, -9, -9),
        (0, -1, True, 0, Error.FAIL),
    ],
)
def test_rc_of_the_helpers_end(
    rc: int, retval: int, guest_responded: bool, earlier_rc: int, want: int
) -> None:
    assert save_rc(rc, retval, guest_responded=guest_responded, earlier_rc=earlier_rc) == want


class EveryOrder(RuleBasedStateMachine):
    """Drives a writer through any order of events that its surroundings can bring about."""

    @initialize(
        stream_type=st.sampled_from(StreamType),
        device_model=st.booleans(),
        helper_runs=st.booleans(),
        promise_rc=st.sampled_from([0, 0, 0, -3]),
    )
    def begin(
        self, stream_type: StreamType, device_model: bool, helper_runs: bool, promise_rc: int
    ) -> None:
        """`helper_runs`: all goes well until the helper runs."""
        self.writer = StreamWriter(device_model=device_model, stream_type=stream_type)
        self.plain = stream_type is StreamType.PLAIN
        self.in_flight: Part | None = None
        self.helper = "not started"
        self.waiting = ""
        self.promises: list[int] = []
        self.promise_rc = promise_rc
        self.whole: list[Part] = []
        self.broken = False
        self.stopped: list[int] = []
        self.transitions: list[int] = []
        self.first_failure = 0
        self.do(self.writer.start())
        while helper_runs and self.helper == "not started":
            self.write_done(0)

    def do(self, actions: Actions) -> None:
        for action in actions:
            self.do_one(action)

    def do_one(self, action: WriterAction) -> None:
        assert not self.stopped, "no action after the end"
        match action:
            case PointOfNoReturn():
                assert self.waiting == "postcopy"
                assert not self.promises, "promised twice"
                assert self.in_flight is None, "promised while something is written"
                self.promises.append(self.promise_rc)
                self.fail(self.promise_rc)
                self.do(self.writer.promised(self.promise_rc))
            case Write(part):
                assert self.in_flight is None, "at most one write in flight"
                if part is Part.POSTCOPY_TRANSITION_END:
                    assert self.promises == [0], "written without a promise"
                assert not self.broken, "nothing after half a record"
                assert self.helper != "running" or self.waiting, "libxc has the stream"
                self.in_flight = part
            case CancelWrite():
                assert self.in_flight is not None
                self.in_flight = None
                self.broken = True
            case StartHelper():
                self.helper = "running"
            case PostcopyTransitionCallback(rc):
                assert self.waiting == "postcopy" or self.helper == "ended"
                assert self.in_flight is None
                self.transitions.append(rc)
                self.waiting = ""
            case CheckpointCallback():
                assert self.waiting == "checkpoint" or self.helper == "ended"
                assert self.in_flight is None
                self.waiting = ""
            case Stopped(rc):
                assert self.in_flight is None
                self.stopped.append(rc)

    def fail(self, rc: int) -> None:
        self.first_failure = self.first_failure or rc

    @precondition(lambda self: self.in_flight)
    @rule(rc=st.sampled_from([0, 0, 0, -3, -9]))
    def write_done(self, rc: int) -> None:
        assert self.in_flight is not None
        if rc:
            self.broken = True
            self.fail(rc)
        else:
            self.whole.append(self.in_flight)
        self.in_flight = None
        self.do(self.writer.write_done(rc))

    @precondition(lambda self: self.helper == "running" and not self.waiting)
    @rule(what=st.sampled_from(["postcopy", "checkpoint", "checkpoint state"]))
    def callback(self, what: str) -> None:
        starts: dict[str, Callable[[], Actions]] = {
            "postcopy": self.writer.start_postcopy_transition,
            "checkpoint": self.writer.start_checkpoint,
            "checkpoint state": self.writer.start_checkpoint_state,
        }
        before = (self.writer.phase, self.writer.writing, self.writer.running)
        self.waiting = what.split(maxsplit=1)[0]
        try:
            actions = starts[what]()
        except OutOfTurn:
            self.waiting = ""
            assert (self.writer.phase, self.writer.writing, self.writer.running) == before
            return
        if not actions:
            self.waiting = ""
        self.do(actions)

    @precondition(lambda self: self.helper == "running")
    @rule(rc=st.sampled_from([0, 0, -3, -8, -22]))
    def helper_ends(self, rc: int) -> None:
        self.helper = "ended"
        self.fail(rc or (Error.FAIL if self.waiting else 0))
        if rc:
            self.do(self.writer.abort(rc))  # the join's part
        self.do(self.writer.helper_done(rc))

    @rule(rc=st.sampled_from([-22, -3]))
    def abort(self, rc: int) -> None:
        if not self.stopped:
            self.fail(rc)
        self.do(self.writer.abort(rc))

    @invariant()
    def never_two_ends(self) -> None:
        assert len(self.stopped) <= 1
        assert len(self.transitions) <= 1
        assert self.writer.running is not bool(self.stopped)
        if self.stopped == [0] and self.plain:
            assert not self.broken
            assert self.whole[-1] is Part.END
        if self.transitions == [0]:
            assert Part.POSTCOPY_TRANSITION_END in self.whole
        else:
            assert Part.POSTCOPY_TRANSITION_END not in self.whole

    @invariant()
    def a_plain_stream_ends_badly_if_something_failed_and_well_otherwise(self) -> None:
        if self.stopped and self.plain:
            assert bool(self.stopped[0]) == bool(self.first_failure)

    @invariant()
    def never_stuck(self) -> None:
        """Either a write or the helper is still to end, or the stream has stopped."""
        assert self.stopped or self.in_flight or self.helper == "running"

    def teardown(self) -> None:
        """From wherever it is, it ends if nothing happens but what must."""
        if not hasattr(self, "stopped"):
            return
        for _ in range(20):
            if self.in_flight:
                self.write_done(0)
            elif self.helper == "running":
                self.helper_ends(0)
            self.a_plain_stream_ends_badly_if_something_failed_and_well_otherwise()
        assert len(self.stopped) == 1


EveryOrder.TestCase.settings = settings(max_examples=120, stateful_step_count=25)
TestEveryOrder = EveryOrder.TestCase
