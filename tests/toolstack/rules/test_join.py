"""The joins: stream and helper (check_all_finished), and the two ends of a postcopy restore."""

from __future__ import annotations

import pytest

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules import postcopy_join
from xen_save_helper.toolstack.rules.join import AbortTask, Complete, Join, Task, Unwind
from xen_save_helper.toolstack.rules.postcopy_join import (
    AbortStream,
    Actions,
    PostcopyJoin,
    RestoreDone,
    Resumed,
)
from xen_save_helper.toolstack.rules.stream import PointOfNoReturn

STREAM, HELPER = Task.STREAM, Task.HELPER


def both() -> Join:
    join = Join()
    join.started(STREAM)
    join.started(HELPER)
    return join


def test_success_completes_once_when_both_have_stopped() -> None:
    join = both()
    assert join.stopped(HELPER, 0) == ()
    assert join.stopped(STREAM, 0) == (Complete(0),)
    assert join.fail(-3) == ()
    assert join.unwound() == ()


def test_a_stream_that_never_got_to_its_helper_completes_alone() -> None:
    join = Join()
    join.started(STREAM)
    assert join.stopped(STREAM, -3) == (Unwind(),)
    assert join.unwound() == (Complete(-3),)


def test_the_first_failure_aborts_what_still_runs() -> None:
    join = both()
    assert join.stopped(HELPER, -3) == (AbortTask(STREAM, -3), Unwind())


def test_giving_up_aborts_both_stream_first() -> None:
    join = both()
    assert join.fail(-22) == (AbortTask(STREAM, -22), AbortTask(HELPER, -22), Unwind())


def test_stacked_entries_under_the_guard_do_nothing_and_the_outermost_completes() -> None:
    join = both()
    join.fail(-22)
    assert join.stopped(STREAM, -22) == ()
    assert join.stopped(HELPER, -22) == ()
    assert join.unwound() == (Complete(-22),)


def test_an_abort_that_ends_later_completes_then() -> None:
    join = both()
    join.fail(-22)
    assert join.stopped(STREAM, -22) == ()
    assert join.unwound() == ()
    assert join.stopped(HELPER, -22) == (Complete(-22),)


def test_the_first_rc_is_kept_and_a_later_one_aborts_nothing() -> None:
    join = both()
    join.fail(-8)
    join.unwound()
    assert join.fail(-22) == ()
    assert join.stopped(HELPER, -3) == ()
    assert join.stopped(STREAM, 0) == (Complete(-8),)


def test_what_does_not_run_cannot_stop() -> None:
    join = both()
    join.stopped(HELPER, 0)
    with pytest.raises(RuntimeError, match="helper stopped, but was not running"):
        join.stopped(HELPER, 0)


def test_nothing_is_started_after_a_failure() -> None:
    join = Join()
    join.started(STREAM)
    join.fail(-3)
    with pytest.raises(RuntimeError, match="after the operation failed or ended"):
        join.started(HELPER)


def resumes(ends: PostcopyJoin, rc: int = 0) -> Actions:
    """Go through a resumption whose last step ends with `rc`."""
    assert ends.transitioned() == (postcopy_join.RestoreDeviceModel(),)
    assert ends.device_model_done(0) == (PointOfNoReturn(),)
    assert ends.promised(0) == (postcopy_join.Unpause(),)
    return ends.unpaused(rc)


class TestPostcopyJoin:
    """libxl_create.c of the postcopy series: the two ends in any order."""

    def test_resumed_then_streamed_is_the_expected_success(self) -> None:
        ends = PostcopyJoin()
        assert resumes(ends) == (Resumed(0),)
        assert ends.stream_done(0) == (RestoreDone(0),)

    def test_streamed_before_the_domain_ran_is_done_when_it_runs(self) -> None:
        ends = PostcopyJoin()
        assert ends.stream_done(0) == ()
        assert resumes(ends) == (Resumed(0), RestoreDone(0))

    def test_a_stream_that_failed_first_is_kept_and_the_domain_may_not_run(self) -> None:
        ends = PostcopyJoin()
        ends.transitioned()
        assert ends.stream_done(-9) == ()
        assert ends.device_model_done(0) == (Resumed(Error.FAIL), RestoreDone(-9))

    def test_a_resumption_that_failed_first_aborts_the_stream_and_its_rc_is_kept(self) -> None:
        ends = PostcopyJoin()
        assert resumes(ends, -9) == (Resumed(-9), AbortStream(-9))
        assert ends.stream_done(-3) == (RestoreDone(-9),)

    def test_a_resumption_that_fails_after_the_stream_ended_gives_the_rc(self) -> None:
        ends = PostcopyJoin()
        ends.stream_done(0)
        assert resumes(ends, -9) == (Resumed(-9), RestoreDone(-9))

    def test_a_stream_that_breaks_while_the_domain_runs_gives_the_rc(self) -> None:
        ends = PostcopyJoin()
        resumes(ends)
        assert ends.stream_done(-3) == (RestoreDone(-3),)

    def test_if_the_promise_cannot_be_recorded_the_domain_never_runs(self) -> None:
        ends = PostcopyJoin()
        ends.transitioned()
        ends.device_model_done(0)
        assert ends.promised(-3) == (Resumed(-3), AbortStream(-3))

    def test_if_the_stream_breaks_past_the_promise_the_domain_runs_all_the_same(self) -> None:
        """As far as anybody else can know, it may be running already."""
        ends = PostcopyJoin()
        ends.transitioned()
        ends.device_model_done(0)
        ends.promised(0)
        ends.stream_done(-3)
        assert ends.unpaused(0) == (Resumed(0), RestoreDone(-3))

    def test_an_end_comes_once(self) -> None:
        ends = PostcopyJoin()
        resumes(ends)
        for step in (ends.device_model_done, ends.promised, ends.unpaused):
            with pytest.raises(RuntimeError, match="while waiting for nothing"):
                step(0)
        ends.stream_done(0)
        with pytest.raises(RuntimeError, match="twice"):
            ends.stream_done(0)
