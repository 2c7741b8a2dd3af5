"""Suspending a guest: the rules, and real guests that obey, refuse, answer late, or die."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.hosts.simulated.suspend import SimulatedSuspendRequest
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.suspend import GuestSuspension
from xen_save_helper.toolstack.rules.suspend import (
    Actions,
    Finished,
    StartLimit,
    SuspendRules,
    Withdraw,
)


def rc_of(actions: Actions) -> int:
    (finished,) = actions
    assert isinstance(finished, Finished)
    assert bool(finished.reason) is bool(finished.rc)
    return finished.rc


class TestRules:
    def test_acknowledged_then_suspended(self) -> None:
        rules = SuspendRules()
        assert rules.acknowledged() == (StartLimit(),)
        assert rules.guest_responded
        assert rc_of(rules.suspended()) == 0
        assert rules.may_suspend

    def test_never_answered(self) -> None:
        rules = SuspendRules()
        assert rules.limit() == (Withdraw(),)
        assert rc_of(rules.withdrawn(True)) == Error.GUEST_TIMEDOUT
        assert not rules.guest_responded
        assert not rules.may_suspend

    def test_an_answer_at_the_last_moment_counts(self) -> None:
        rules = SuspendRules()
        rules.limit()
        assert rules.withdrawn(False) == (StartLimit(),)
        assert rules.guest_responded
        assert rc_of(rules.suspended()) == 0

    def test_acknowledged_but_not_suspended_in_time(self) -> None:
        rules = SuspendRules()
        rules.acknowledged()
        rules.limit()
        assert rc_of(rules.withdrawn(True)) == Error.GUEST_TIMEDOUT
        assert rules.guest_responded
        assert not rules.may_suspend

    def test_a_guest_that_may_suspend_after_all_is_reported(self) -> None:
        rules = SuspendRules()
        rules.acknowledged()
        rules.limit()
        assert rc_of(rules.withdrawn(False)) == Error.GUEST_TIMEDOUT
        assert rules.may_suspend

    @pytest.mark.parametrize("how", ["refused", "crashed"])
    def test_refusal_and_crash_are_failures_and_answers(self, how: str) -> None:
        rules = SuspendRules()
        assert rc_of(getattr(rules, how)()) == Error.FAIL
        assert rules.guest_responded
        assert not rules.may_suspend

    @pytest.mark.parametrize("taken_back", [True, False])
    def test_an_abort_withdraws(self, taken_back: bool) -> None:
        rules = SuspendRules()
        assert rules.abort(-22) == (Withdraw(),)
        assert rc_of(rules.withdrawn(taken_back)) == -22
        assert rules.may_suspend is not taken_back

    def test_an_abort_outranks_the_limit(self) -> None:
        rules = SuspendRules()
        rules.limit()
        assert rules.abort(-22) == ()
        assert rc_of(rules.withdrawn(True)) == -22


MEMORY = 1 << 20
QUICK = Limits(suspend=0.3, callback=10)


def suspend(
    host: SimulatedHost, domid: int, limits: Limits, abort_rc: int = 0
) -> tuple[Finished, SuspendRules]:
    async def work() -> tuple[Finished, SuspendRules]:
        suspension = GuestSuspension(host, domid, limits)
        if abort_rc:
            suspension.abort(abort_rc)
        async with asyncio.timeout(60):
            return await suspension.run(), suspension.rules

    return asyncio.run(work())


def state(host: SimulatedHost, domid: int) -> GuestState:
    return next(row.state for row in host.domains() if row.domid == domid)


@pytest.mark.usefixtures("no_leaks")
class TestGuests:
    def test_a_guest_that_obeys(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "random")
        finished, rules = suspend(host, domid, Limits())
        assert finished.rc == 0
        assert rules.may_suspend
        assert state(host, domid) is GuestState.SUSPENDED
        host.resume(domid)
        assert state(host, domid) is GuestState.RUNNING

    def test_a_guest_that_never_answers_runs_on(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "random", behaviour=Behaviour.REFUSE)
        finished, rules = suspend(host, domid, QUICK)
        assert finished.rc == Error.GUEST_TIMEDOUT
        assert not rules.guest_responded
        assert not rules.may_suspend
        assert state(host, domid) is GuestState.RUNNING

    def test_a_late_answer_counts(self, host: SimulatedHost) -> None:
        domid = host.create_guest(
            "g", MEMORY, "random", behaviour=Behaviour.LATE, behaviour_seconds=0.1
        )
        finished, _ = suspend(host, domid, Limits(suspend=10))
        assert finished.rc == 0
        assert state(host, domid) is GuestState.SUSPENDED

    def test_an_answer_after_the_limit_finds_no_request(self, host: SimulatedHost) -> None:
        domid = host.create_guest(
            "g", MEMORY, "random", behaviour=Behaviour.LATE, behaviour_seconds=2.0
        )
        finished, _ = suspend(host, domid, Limits(suspend=0.1))
        assert finished.rc == Error.GUEST_TIMEDOUT
        host.set_behaviour(domid, Behaviour.NORMAL)
        assert host.verify(domid, 20).state is GuestState.RUNNING

    def test_a_guest_that_crashes(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "random", behaviour=Behaviour.DIE)
        finished, rules = suspend(host, domid, Limits())
        assert finished.rc == Error.FAIL
        assert "crashed" in finished.reason
        assert not rules.may_suspend

    def test_a_guest_whose_process_was_killed(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "random", behaviour=Behaviour.REFUSE)
        (row,) = host.domains()
        assert row.pid is not None

        async def work() -> Finished:
            suspension = GuestSuspension(host, domid, Limits())
            task = asyncio.ensure_future(suspension.run())
            await asyncio.sleep(0)
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            async with asyncio.timeout(30):
                return await task

        pidfd = os.pidfd_open(row.pid)
        try:
            finished = asyncio.run(work())
        finally:
            os.close(pidfd)
        assert finished.rc == Error.FAIL

    def test_an_aborted_request_is_taken_back(self, host: SimulatedHost) -> None:
        domid = host.create_guest("g", MEMORY, "random", behaviour=Behaviour.REFUSE)
        finished, rules = suspend(host, domid, Limits(), abort_rc=Error.ABORTED)
        assert finished.rc == Error.ABORTED
        assert not rules.may_suspend
        host.set_behaviour(domid, Behaviour.NORMAL)
        assert host.verify(domid, 20).state is GuestState.RUNNING

    def test_a_request_that_timed_out_may_still_take_effect(self, host: SimulatedHost) -> None:
        class Slow(SimulatedHost):
            def suspend_request(self, domid: int) -> SimulatedSuspendRequest:
                super().suspend_request(domid).close()
                raise TimeoutError("no answer")

        domid = host.create_guest("g", MEMORY, "random")
        finished, rules = suspend(Slow(host.directory), domid, Limits())
        assert finished.rc == Error.FAIL
        assert rules.may_suspend
        wait_for(lambda: state(host, domid) is GuestState.SUSPENDED, "the guest has suspended")

    def test_no_such_domain(self, host: SimulatedHost) -> None:
        finished, _ = suspend(host, 77, Limits())
        assert finished.rc == Error.FAIL
        assert finished.reason == "the guest was destroyed"
