"""Every order of events, faults included, for the small machines: a helper's run, the joins, the
suspension of a guest. Each is driven by a model of its surroundings that does only what those can
do. (The stream's machines are driven beside their own tests, and all of them together in
test_orders_of_a_save.py and test_orders_of_a_restore.py.)

Each machine ends once, with the first failure; does nothing after its end; and can be brought to
its end at any moment.
"""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules import join, postcopy_join, suspend
from xen_save_helper.toolstack.rules.helper_run import HelperAction, HelperEvent, HelperRun
from xen_save_helper.toolstack.rules.join import AbortTask, Join, Task, Unwind
from xen_save_helper.toolstack.rules.postcopy_join import (
    AbortStream,
    PostcopyJoin,
    RestoreDone,
    Resumed,
)
from xen_save_helper.toolstack.rules.stream import PointOfNoReturn
from xen_save_helper.toolstack.rules.suspend import Finished, StartLimit, SuspendRules, Withdraw

FAILURES = st.sampled_from([-3, -8, -9, -22])
MANY = settings(max_examples=120, stateful_step_count=20)


class HelperRunOrders(RuleBasedStateMachine):
    """A helper's process and channel, its limits, and a caller that may give up."""

    @initialize(
        needs_results=st.booleans(), steps=st.sampled_from([0, 1, 2, 3, 3]), told=st.booleans()
    )
    def begin(self, needs_results: bool, steps: int, told: bool) -> None:
        """The first `steps` go well; then anything may come. `told`: the results are sent."""
        self.run = HelperRun(needs_results=needs_results)
        self.results_due = needs_results
        self.process = "none"
        self.listening = True
        self.greeted = False
        self.limit = ""
        self.killed = False
        self.terminated = 0
        self.done = 0
        self.complete: tuple[int, int] | None = None
        self.first = (0, "")
        complete = partial(self.completes, retval=0, errnoval=0)
        for step in (self.starts, self.says_hello, complete)[:steps]:
            step()
            if told and self.greeted and self.results_due:
                self.tells_results()

    def do(self, actions: tuple[HelperAction, ...]) -> None:
        for action in actions:
            assert not self.done, "no action after the end"
            match action:
                case HelperAction.STOP_LISTENING:
                    self.listening = False
                case HelperAction.TERMINATE:
                    assert self.process == "alive"
                    assert not self.killed, "SIGTERM after SIGKILL"
                    self.terminated += 1
                case HelperAction.KILL:
                    assert self.process == "alive"
                    assert not self.killed, "killed twice"
                    self.killed = True
                case HelperAction.LIMIT_START | HelperAction.LIMIT_ABORT:
                    self.limit = action.name
                case HelperAction.NO_LIMIT:
                    self.limit = ""
                case HelperAction.DONE:
                    assert self.process in ("none", "gone"), "told while the process lives"
                    self.done += 1

    def tell(self, event: HelperEvent, rc: int, reason: str) -> None:
        """Report an event that is a failure with `rc`."""
        counts = not self.done
        actions = self.run.event(event, reason, rc)
        if counts and actions and not self.first[0]:
            self.first = (rc, reason)
        self.do(actions)

    def hears(self) -> bool:
        return self.process == "alive" and self.listening

    @precondition(lambda self: self.process == "none" and not self.done)
    @rule()
    def starts(self) -> None:
        self.process = "alive"
        self.do(self.run.event(HelperEvent.STARTED))

    @precondition(lambda self: self.process == "none" and not self.done)
    @rule()
    def cannot_be_started(self) -> None:
        self.tell(HelperEvent.START_FAILED, Error.FAIL, "no such program")

    @precondition(lambda self: self.hears() and not self.greeted)
    @rule()
    def says_hello(self) -> None:
        self.greeted = True
        self.do(self.run.event(HelperEvent.HELLO))

    @precondition(lambda self: self.hears() and self.greeted)
    @rule()
    def tells_results(self) -> None:
        self.results_due = False
        self.run.results()

    @precondition(lambda self: self.hears() and self.greeted)
    @rule(retval=st.sampled_from([0, -1]), errnoval=st.sampled_from([0, 32]))
    def completes(self, retval: int, errnoval: int) -> None:
        actions = self.run.complete(retval, errnoval)
        assert actions, "its result was ignored"
        self.complete = (retval, errnoval)
        self.do(actions)

    @precondition(lambda self: self.hears())
    @rule(
        what=st.sampled_from(
            [HelperEvent.VIOLATION, HelperEvent.REPLY_FAILED, HelperEvent.CHANNEL_LOST]
        )
    )
    def the_channel_fails(self, what: HelperEvent) -> None:
        self.tell(what, Error.FAIL, what.value)

    @precondition(lambda self: self.limit or (self.hears() and self.greeted))
    @rule()
    def a_limit_is_over(self) -> None:
        """The limit of the start, of the abort, or of an answer."""
        self.limit = ""
        self.tell(HelperEvent.LIMIT, Error.TIMEDOUT, "too long")

    @rule(rc=FAILURES)
    def the_caller_gives_up(self, rc: int) -> None:
        self.tell(HelperEvent.ABORT, rc, f"given up with {rc}")

    @precondition(lambda self: self.process == "alive")
    @rule(status=st.sampled_from([0, 0, 0, 3, 254, -11]))
    def exits(self, status: int) -> None:
        self.ends(-9 if self.killed else status)

    def ends(self, status: int) -> None:
        self.process = "gone"
        if not self.first[0] and (status or self.results_due or self.complete is None):
            self.first = (Error.FAIL, "")
        self.do(self.run.exited(status))

    @invariant()
    def once(self) -> None:
        assert self.done <= 1
        assert bool(self.done) == (self.process == "gone" or (self.process == "none" and self.told))

    @property
    def told(self) -> bool:
        return bool(self.first[0])

    @invariant()
    def the_first_failure_is_kept(self) -> None:
        assert self.run.rc == self.first[0]
        if self.first[1]:
            assert self.run.reason == self.first[1]
        assert bool(self.run.reason) == bool(self.run.rc)

    @invariant()
    def what_was_told_is_kept(self) -> None:
        assert self.run.completed == (self.complete is not None)
        if self.complete is not None:
            assert (self.run.retval, self.run.errnoval) == self.complete

    @invariant()
    def no_wait_without_an_end(self) -> None:
        """A process that was killed exits. Any other one can report, or has a limit."""
        if self.process == "alive" and not self.killed:
            assert self.limit or (self.listening and self.greeted)

    def teardown(self) -> None:
        """From here on the helper does nothing but die."""
        if not hasattr(self, "run"):
            return
        self.the_caller_gives_up(-22)
        for _ in range(3):
            if self.limit:
                self.a_limit_is_over()
        assert self.killed or self.process != "alive"
        if self.process == "alive":
            self.ends(-9)
        assert self.done == 1


class JoinOrders(RuleBasedStateMachine):
    """Stream and helper, each of which stops at once when aborted, or later, or on top of it."""

    @initialize(at_once=st.sets(st.sampled_from(Task)), on_top=FAILURES, other=st.booleans())
    def begin(self, at_once: set[Task], on_top: int, other: bool) -> None:
        self.join = Join()
        self.at_once = at_once
        self.on_top = on_top
        self.fails_on_top = other
        self.running: set[Task] = set()
        self.aborted: list[Task] = []
        self.guarded = False
        self.first = 0
        self.ends: list[int] = []
        self.starts(Task.STREAM)

    def starts(self, task: Task) -> None:
        self.join.started(task)
        self.running.add(task)

    def do(self, actions: tuple[join.JoinAction, ...]) -> None:
        for action in actions:
            assert not self.ends, "no action after the end"
            match action:
                case AbortTask(task, rc):
                    assert rc == self.first
                    assert task in self.running
                    assert task not in self.aborted, "aborted twice"
                    self.guarded = True
                    self.aborted.append(task)
                    if self.fails_on_top:
                        self.do(self.join.fail(self.on_top))
                    if task in self.at_once:
                        self.stop(task, rc)
                case Unwind():
                    self.guarded = False
                    self.do(self.join.unwound())
                case join.Complete(rc):
                    assert not self.running, "completed while something runs"
                    assert not self.guarded, "completed within an abort"
                    self.ends.append(rc)

    def fail(self, rc: int) -> None:
        if not self.ends:
            self.first = self.first or rc

    def stop(self, task: Task, rc: int) -> None:
        self.running.remove(task)
        self.fail(rc)
        self.do(self.join.stopped(task, rc))

    @precondition(lambda self: self.running == {Task.STREAM} and not self.first)
    @rule()
    def the_helper_starts(self) -> None:
        if Task.HELPER not in self.aborted:
            self.starts(Task.HELPER)

    @precondition(lambda self: self.running)
    @rule(rc=st.one_of(st.just(0), FAILURES), data=st.data())
    def a_task_stops(self, rc: int, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(sorted(self.running, key=lambda task: task.value)))
        self.stop(task, rc)

    @rule(rc=FAILURES)
    def the_caller_gives_up(self, rc: int) -> None:
        self.fail(rc)
        self.do(self.join.fail(rc))

    @invariant()
    def once_with_the_first_failure(self) -> None:
        assert self.ends == ([] if self.running else [self.first])
        assert self.join.rc == self.first

    @invariant()
    def after_a_failure_all_that_runs_is_aborted(self) -> None:
        if self.first:
            assert self.running <= set(self.aborted)

    def teardown(self) -> None:
        for task in Task:
            if task in getattr(self, "running", ()):
                self.stop(task, self.first)
        if hasattr(self, "ends"):
            assert self.ends == [self.first]


class PostcopyJoinOrders(RuleBasedStateMachine):
    """The two ends of a postcopy restore; an aborted stream ends at once or later."""

    @initialize(at_once=st.booleans())
    def begin(self, at_once: bool) -> None:
        self.join = PostcopyJoin()
        self.at_once = at_once
        self.asked = ""
        """The step that the resumption waits for."""
        self.done: list[str] = []
        """The steps that have ended well."""
        self.stream: int | None = None
        self.resume: int | None = None
        self.first = 0
        self.ends: list[int] = []
        self.aborts = 0
        self.do(self.join.transitioned())

    def do(self, actions: postcopy_join.Actions) -> None:
        for action in actions:
            assert not self.ends, "no action after the end"
            match action:
                case postcopy_join.RestoreDeviceModel():
                    self.asks("device_model_done", [])
                case PointOfNoReturn():
                    self.asks("promised", ["device_model_done"])
                    assert not self.stream, "promised though the stream has failed"
                case postcopy_join.Unpause():
                    self.asks("unpaused", ["device_model_done", "promised"])
                case Resumed(rc):
                    assert self.resume is None, "resumed twice"
                    self.resume = rc
                    self.first = self.first or rc
                case AbortStream(rc):
                    assert self.stream is None
                    assert rc == self.resume
                    self.aborts += 1
                    if self.at_once:
                        self.stream_ends(rc)
                case RestoreDone(rc):
                    assert None not in (self.stream, self.resume), "completed before both ends"
                    self.ends.append(rc)

    def asks(self, what: str, after: list[str]) -> None:
        assert self.done == after
        self.asked = what

    def stream_ends(self, rc: int) -> None:
        self.stream = rc
        self.first = self.first or rc
        self.do(self.join.stream_done(rc))

    @precondition(lambda self: self.stream is None)
    @rule(rc=st.one_of(st.just(0), FAILURES))
    def the_stream_ends(self, rc: int) -> None:
        self.stream_ends(rc)

    @precondition(lambda self: self.asked)
    @rule(rc=st.one_of(st.just(0), st.just(0), FAILURES))
    def a_step_ends(self, rc: int) -> None:
        step, self.asked = self.asked, ""
        if not rc:
            self.done.append(step)
        self.do(getattr(self.join, step)(rc))

    @rule(rc=st.one_of(st.just(0), FAILURES))
    def something_comes_twice(self, rc: int) -> None:
        """That is a bug of the caller, and changes nothing."""
        if self.stream is not None:
            with pytest.raises(RuntimeError, match="twice"):
                self.join.stream_done(rc)
        for step in {"device_model_done", "promised", "unpaused"} - {self.asked}:
            with pytest.raises(RuntimeError, match="while waiting for"):
                getattr(self.join, step)(rc)

    @invariant()
    def once_with_the_first_failure(self) -> None:
        both = None not in (self.stream, self.resume)
        assert self.ends == ([self.first] if both else [])
        assert self.aborts <= 1

    @invariant()
    def it_runs_only_past_the_point_of_no_return(self) -> None:
        if "unpaused" in self.done or self.asked == "unpaused":
            assert "promised" in self.done
        assert (self.resume == 0) == ("unpaused" in self.done)

    @invariant()
    def a_stream_without_a_domain_is_not_left_running(self) -> None:
        if self.resume and self.stream is None:
            assert self.aborts == 1

    def teardown(self) -> None:
        if not hasattr(self, "ends"):
            return
        while self.asked:
            self.a_step_ends(0)
        if self.stream is None:
            self.the_stream_ends(self.first)
        assert self.ends == [self.first]


class SuspendOrders(RuleBasedStateMachine):
    """A guest with a request, of which it knows until that is withdrawn; `asked` is how far the
    guest has got."""

    @initialize()
    def begin(self) -> None:
        self.suspension = SuspendRules()
        self.asked = "requested"
        self.request = True
        self.limit = True
        self.withdrawing = False
        self.causes: list[int] = []
        self.ends: list[Finished] = []

    def do(self, actions: suspend.Actions) -> None:
        for action in actions:
            assert not self.ends, "no action after the end"
            match action:
                case StartLimit():
                    self.limit = True
                case Withdraw():
                    assert not self.withdrawing, "one withdrawal at a time"
                    self.withdrawing = True
                case Finished():
                    self.ends.append(action)

    @precondition(lambda self: self.request and self.asked == "requested")
    @rule()
    def the_guest_acknowledges(self) -> None:
        self.asked = "acknowledged"
        self.do(self.suspension.acknowledged())

    @precondition(lambda self: self.request and self.asked in ("requested", "acknowledged"))
    @rule()
    def the_guest_suspends(self) -> None:
        self.asked = "suspended"
        self.do(self.suspension.suspended())

    @precondition(lambda self: self.request and self.asked in ("requested", "acknowledged"))
    @rule(how=st.sampled_from(["refused", "crashed"]))
    def the_guest_does_not(self, how: str) -> None:
        self.asked = how
        self.do(getattr(self.suspension, how)())

    @precondition(lambda self: self.limit)
    @rule()
    def the_limit_is_over(self) -> None:
        self.limit = False
        self.causes.append(Error.GUEST_TIMEDOUT)
        self.do(self.suspension.limit())

    @rule(rc=st.sampled_from([-22, -3]))
    def the_caller_gives_up(self, rc: int) -> None:
        self.causes.append(rc)
        self.do(self.suspension.abort(rc))

    @precondition(lambda self: self.withdrawing)
    @rule(too_late=st.booleans())
    def the_withdrawal_ends(self, too_late: bool) -> None:
        """It fails if the guest has answered; a suspension is reported before that."""
        self.withdrawing = False
        taken_back = self.asked == "requested" or (self.asked == "acknowledged" and not too_late)
        if self.asked == "requested" and too_late:
            self.asked = "acknowledged"
            taken_back = False
        if taken_back:
            self.request = False
        self.do(self.suspension.withdrawn(taken_back))

    @invariant()
    def once(self) -> None:
        assert len(self.ends) <= 1
        assert bool(self.ends) == (self.suspension.stage is suspend.SuspendStage.ENDED)

    @invariant()
    def the_end_is_what_caused_it(self) -> None:
        for end in self.ends:
            assert bool(end.reason) == bool(end.rc)
            match self.asked:
                case "suspended":
                    assert end.rc == 0 or end.rc in self.causes
                case "refused" | "crashed":
                    assert end.rc in (Error.FAIL, *self.causes)
                case _:
                    assert end.rc in self.causes

    @invariant()
    def a_guest_that_may_suspend_is_not_forgotten(self) -> None:
        """Otherwise nobody would resume it."""
        if self.ends and self.ends[0].rc:
            still_asked = self.request and self.asked in ("requested", "acknowledged")
            assert self.suspension.may_suspend or not still_asked
        if self.ends and self.asked == "suspended":
            assert self.suspension.may_suspend

    @invariant()
    def an_answer_is_known(self) -> None:
        """It tells a failure from a guest that never answered."""
        if self.asked != "requested" and not self.ends:
            assert self.suspension.guest_responded

    @invariant()
    def no_wait_without_an_end(self) -> None:
        assert self.ends or self.limit or self.withdrawing

    def teardown(self) -> None:
        """From here on the guest does nothing, and the request cannot be withdrawn."""
        if not hasattr(self, "suspension"):
            return
        for _ in range(8):
            if self.withdrawing:
                self.the_withdrawal_ends(too_late=True)
            elif self.limit:
                self.the_limit_is_over()
        assert len(self.ends) == 1


for machine in (HelperRunOrders, JoinOrders, PostcopyJoinOrders, SuspendOrders):
    machine.TestCase.settings = MANY
TestHelperRun = HelperRunOrders.TestCase
TestJoin = JoinOrders.TestCase
TestPostcopyJoin = PostcopyJoinOrders.TestCase
TestSuspend = SuspendOrders.TestCase
