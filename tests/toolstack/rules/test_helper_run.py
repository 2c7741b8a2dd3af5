from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.helper_run import Action, Event, HelperPhase, HelperRun

ABORT_RC = int(Error.ABORTED)


def run_after(*events: Event, needs_results: bool = False) -> HelperRun:
    run = HelperRun(needs_results=needs_results)
    for event in events:
        if event is Event.COMPLETE:
            run.complete(0, 0)
        elif event is Event.EXITED:
            run.exited(0)
        else:
            run.event(event, event.name, ABORT_RC if event is Event.ABORT else 0)
    return run


AT_WORK = (Event.STARTED, Event.HELLO)


class TestLibxlsTable:
    """The rows of libxl_save_callout.c, in its order."""

    def test_it_cannot_be_started(self) -> None:
        run = run_after()
        assert run.event(Event.START_FAILED, "no such file") == (Action.DONE,)
        assert (run.rc, run.reason) == (Error.FAIL, "no such file")

    @pytest.mark.parametrize("before", [(Event.STARTED,), AT_WORK, (*AT_WORK, Event.ABORT)])
    def test_a_broken_message(self, before: tuple[Event, ...]) -> None:
        run = run_after(*before)
        assert run.event(Event.VIOLATION, "garbage") == (Action.STOP_LISTENING, Action.KILL)
        assert run.rc == (ABORT_RC if Event.ABORT in before else Error.FAIL)

    def test_a_reply_that_cannot_be_written(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(Event.REPLY_FAILED, "full") == (Action.STOP_LISTENING, Action.KILL)
        assert run.rc == Error.FAIL

    def test_the_end_of_the_channel(self) -> None:
        run = run_after(*AT_WORK)
        actions = run.event(Event.CHANNEL_LOST, "hung up")
        assert actions == (Action.STOP_LISTENING, Action.TERMINATE, Action.LIMIT_ABORT)
        assert run.rc == Error.FAIL

    @pytest.mark.parametrize("before", [(Event.STARTED,), AT_WORK])
    def test_an_abort_is_sigterm_with_a_limit(self, before: tuple[Event, ...]) -> None:
        run = run_after(*before)
        assert run.event(Event.ABORT, "why", ABORT_RC) == (Action.TERMINATE, Action.LIMIT_ABORT)
        assert (run.rc, run.reason) == (ABORT_RC, "why")
        assert run.event(Event.ABORT, "again", -1) == ()
        assert run.event(Event.LIMIT, "too long") == (Action.STOP_LISTENING, Action.KILL)
        assert (run.rc, run.reason) == (ABORT_RC, "why")

    def test_an_abort_before_the_start(self) -> None:
        run = run_after()
        assert run.event(Event.ABORT, "why", ABORT_RC) == (Action.DONE,)
        assert run.rc == ABORT_RC

    def test_complete(self) -> None:
        run = run_after(*AT_WORK)
        assert run.complete(-1, 32) == (Action.STOP_LISTENING, Action.LIMIT_ABORT)
        assert (run.completed, run.retval, run.errnoval) == (True, -1, 32)
        assert run.exited(0)[-1] is Action.DONE
        assert run.rc == 0

    @pytest.mark.parametrize(
        ("status", "reason"),
        [(3, "exit status 3: last words"), (-9, "killed by signal 9: last words")],
    )
    def test_an_exit_status(self, status: int, reason: str) -> None:
        run = run_after(*AT_WORK, Event.COMPLETE)
        run.exited(status, "last words")
        assert run.rc == Error.FAIL
        assert reason in run.reason

    def test_a_restore_without_results(self) -> None:
        run = run_after(*AT_WORK, Event.COMPLETE, needs_results=True)
        run.exited(0)
        assert run.rc == Error.FAIL
        assert "without providing results" in run.reason

    def test_a_restore_with_results(self) -> None:
        run = run_after(*AT_WORK, needs_results=True)
        run.results()
        run.complete(0, 0)
        run.exited(0)
        assert run.rc == 0

    def test_an_exit_without_complete(self) -> None:
        run = run_after(*AT_WORK)
        run.exited(0)
        assert run.rc == Error.FAIL
        assert "without signalling completion" in run.reason

    @pytest.mark.parametrize("status", [0, 1, -15])
    def test_an_abort_keeps_its_rc(self, status: int) -> None:
        run = run_after(*AT_WORK, Event.ABORT)
        run.exited(status)
        assert run.rc == ABORT_RC


class TestLimits:
    def test_no_hello(self) -> None:
        run = run_after()
        assert run.event(Event.STARTED) == (Action.LIMIT_START,)
        assert run.event(Event.LIMIT, "no hello") == (Action.STOP_LISTENING, Action.KILL)
        assert run.rc == Error.TIMEDOUT

    def test_hello_in_time(self) -> None:
        assert run_after(Event.STARTED).event(Event.HELLO) == (Action.LIMIT_SILENCE,)

    def test_no_sign_of_life_is_an_abort(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(Event.LIMIT, "silent") == (Action.TERMINATE, Action.LIMIT_ABORT)
        assert (run.rc, run.reason) == (Error.TIMEDOUT, "silent")

    def test_a_late_answer_is_an_abort(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(Event.LIMIT, "late") == (Action.TERMINATE, Action.LIMIT_ABORT)
        assert run.rc == Error.TIMEDOUT

    def test_no_exit_after_complete(self) -> None:
        run = run_after(*AT_WORK, Event.COMPLETE)
        assert run.event(Event.LIMIT, "no exit") == (Action.KILL,)
        assert run.rc == Error.TIMEDOUT


EVENTS = st.lists(
    st.sampled_from([event for event in Event if event not in (Event.STARTED, Event.EXITED)])
)


@given(EVENTS)
def test_whatever_happens_it_is_done_once_and_only_when_reaped(events: list[Event]) -> None:
    run = run_after(Event.STARTED)
    killed = 0
    for event in events:
        if event is Event.COMPLETE:
            actions = run.complete(0, 0)
        else:
            actions = run.event(event, "reason", ABORT_RC if event is Event.ABORT else 0)
        assert Action.DONE not in actions
        killed += Action.KILL in actions
    assert killed <= 1
    assert run.exited(0).count(Action.DONE) == 1
    assert run.phase is HelperPhase.ENDED
    assert (run.rc == 0) == (run.completed and run.reason == "")
    for event in Event:
        assert run.event(event, "late", -1) == ()


@given(EVENTS)
def test_the_first_failure_is_the_one_that_is_told(events: list[Event]) -> None:
    run = run_after(*AT_WORK)
    first = 0
    for index, event in enumerate(events):
        run.event(event, str(index), ABORT_RC if event is Event.ABORT else 0)
        first = first or run.rc
        assert run.rc == first
