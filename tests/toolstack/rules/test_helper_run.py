from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.helper_run import (
    HelperAction,
    HelperEvent,
    HelperPhase,
    HelperRun,
)

ABORT_RC = int(Error.ABORTED)


def run_after(*events: HelperEvent, needs_results: bool = False) -> HelperRun:
    run = HelperRun(needs_results=needs_results)
    for event in events:
        if event is HelperEvent.COMPLETE:
            run.complete(0, 0)
        elif event is HelperEvent.EXITED:
            run.exited(0)
        else:
            run.event(event, event.name, ABORT_RC if event is HelperEvent.ABORT else 0)
    return run


AT_WORK = (HelperEvent.STARTED, HelperEvent.HELLO)


class TestLibxlsTable:
    """The rows of libxl_save_callout.c, in its order."""

    def test_it_cannot_be_started(self) -> None:
        run = run_after()
        assert run.event(HelperEvent.START_FAILED, "no such file") == (HelperAction.DONE,)
        assert (run.rc, run.reason) == (Error.FAIL, "no such file")

    @pytest.mark.parametrize(
        "before", [(HelperEvent.STARTED,), AT_WORK, (*AT_WORK, HelperEvent.ABORT)]
    )
    def test_a_broken_message(self, before: tuple[HelperEvent, ...]) -> None:
        run = run_after(*before)
        assert run.event(HelperEvent.VIOLATION, "garbage") == (
            HelperAction.STOP_LISTENING,
            HelperAction.KILL,
        )
        assert run.rc == (ABORT_RC if HelperEvent.ABORT in before else Error.FAIL)

    def test_a_reply_that_cannot_be_written(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(HelperEvent.REPLY_FAILED, "full") == (
            HelperAction.STOP_LISTENING,
            HelperAction.KILL,
        )
        assert run.rc == Error.FAIL

    def test_the_end_of_the_channel(self) -> None:
        run = run_after(*AT_WORK)
        actions = run.event(HelperEvent.CHANNEL_LOST, "hung up")
        assert actions == (
            HelperAction.STOP_LISTENING,
            HelperAction.TERMINATE,
            HelperAction.LIMIT_ABORT,
        )
        assert run.rc == Error.FAIL

    @pytest.mark.parametrize("before", [(HelperEvent.STARTED,), AT_WORK])
    def test_an_abort_is_sigterm_with_a_limit(self, before: tuple[HelperEvent, ...]) -> None:
        run = run_after(*before)
        assert run.event(HelperEvent.ABORT, "why", ABORT_RC) == (
            HelperAction.TERMINATE,
            HelperAction.LIMIT_ABORT,
        )
        assert (run.rc, run.reason) == (ABORT_RC, "why")
        assert run.event(HelperEvent.ABORT, "again", -1) == ()
        assert run.event(HelperEvent.LIMIT, "too long") == (
            HelperAction.STOP_LISTENING,
            HelperAction.KILL,
        )
        assert (run.rc, run.reason) == (ABORT_RC, "why")

    def test_an_abort_before_the_start(self) -> None:
        run = run_after()
        assert run.event(HelperEvent.ABORT, "why", ABORT_RC) == (HelperAction.DONE,)
        assert run.rc == ABORT_RC

    def test_complete(self) -> None:
        run = run_after(*AT_WORK)
        assert run.complete(-1, 32) == (HelperAction.STOP_LISTENING, HelperAction.LIMIT_ABORT)
        assert (run.completed, run.retval, run.errnoval) == (True, -1, 32)
        assert run.exited(0)[-1] is HelperAction.DONE
        assert run.rc == 0

    @pytest.mark.parametrize(
        ("status", "reason"),
        [(3, "exit status 3: last words"), (-9, "killed by signal 9: last words")],
    )
    def test_an_exit_status(self, status: int, reason: str) -> None:
        run = run_after(*AT_WORK, HelperEvent.COMPLETE)
        run.exited(status, "last words")
        assert run.rc == Error.FAIL
        assert reason in run.reason

    def test_a_restore_without_results(self) -> None:
        run = run_after(*AT_WORK, HelperEvent.COMPLETE, needs_results=True)
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
        run = run_after(*AT_WORK, HelperEvent.ABORT)
        run.exited(status)
        assert run.rc == ABORT_RC


class TestLimits:
    def test_no_hello(self) -> None:
        run = run_after()
        assert run.event(HelperEvent.STARTED) == (HelperAction.LIMIT_START,)
        assert run.event(HelperEvent.LIMIT, "no hello") == (
            HelperAction.STOP_LISTENING,
            HelperAction.KILL,
        )
        assert run.rc == Error.TIMEDOUT

    def test_hello_in_time(self) -> None:
        assert run_after(HelperEvent.STARTED).event(HelperEvent.HELLO) == (
            HelperAction.LIMIT_SILENCE,
        )

    def test_no_sign_of_life_is_an_abort(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(HelperEvent.LIMIT, "silent") == (
            HelperAction.TERMINATE,
            HelperAction.LIMIT_ABORT,
        )
        assert (run.rc, run.reason) == (Error.TIMEDOUT, "silent")

    def test_a_late_answer_is_an_abort(self) -> None:
        run = run_after(*AT_WORK)
        assert run.event(HelperEvent.LIMIT, "late") == (
            HelperAction.TERMINATE,
            HelperAction.LIMIT_ABORT,
        )
        assert run.rc == Error.TIMEDOUT

    def test_no_exit_after_complete(self) -> None:
        run = run_after(*AT_WORK, HelperEvent.COMPLETE)
        assert run.event(HelperEvent.LIMIT, "no exit") == (HelperAction.KILL,)
        assert run.rc == Error.TIMEDOUT


EVENTS = st.lists(
    st.sampled_from(
        [event for event in HelperEvent if event not in (HelperEvent.STARTED, HelperEvent.EXITED)]
    )
)


@given(EVENTS)
def test_whatever_happens_it_is_done_once_and_only_when_reaped(events: list[HelperEvent]) -> None:
    run = run_after(HelperEvent.STARTED)
    killed = 0
    for event in events:
        if event is HelperEvent.COMPLETE:
            actions = run.complete(0, 0)
        else:
            actions = run.event(event, "reason", ABORT_RC if event is HelperEvent.ABORT else 0)
        assert HelperAction.DONE not in actions
        killed += HelperAction.KILL in actions
    assert killed <= 1
    assert run.exited(0).count(HelperAction.DONE) == 1
    assert run.phase is HelperPhase.ENDED
    assert (run.rc == 0) == (run.completed and run.reason == "")
    for event in HelperEvent:
        assert run.event(event, "late", -1) == ()


@given(EVENTS)
def test_the_first_failure_is_the_one_that_is_told(events: list[HelperEvent]) -> None:
    run = run_after(*AT_WORK)
    first = 0
    for index, event in enumerate(events):
        run.event(event, str(index), ABORT_RC if event is HelperEvent.ABORT else 0)
        first = first or run.rc
        assert run.rc == first
