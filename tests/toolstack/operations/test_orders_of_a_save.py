"""Every order of events in a whole save, faults included: stream writer, join, helper's run,
suspension, and `SaveOperation` and `SaveHelper`, which connect them. Only the edges are driven
(`tests.toolstack.operations.driven`)."""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.toolstack.operations.save_orders import SaveOrders
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy

SaveOrders.TestCase.settings = settings(max_examples=250, stateful_step_count=30)
TestSave = SaveOrders.TestCase


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
def test_a_save_that_goes_well_is_one_of_the_orders(postcopy: bool, device_model: bool) -> None:
    """Otherwise nothing that is judged at a good end would be tested."""
    save = SaveOrders()
    save.begin(live=True, postcopy=postcopy, device_model=device_model, steps=100)
    save.the_end_is_one()
    assert save.result is not None
    assert (save.result.rc, save.result.suspended, save.trouble) == (0, True, 0)
    policy = PrecopyPolicy.POSTCOPY if postcopy else PrecopyPolicy.STOP_AND_COPY
    assert ("precopy_policy", policy) in save.answers
    save.teardown()


def test_success_that_is_read_only_after_the_helpers_end_is_success() -> None:
    """It is not a failure that nobody is left to take the answer."""
    save = SaveOrders()
    save.begin(live=True, postcopy=False, device_model=False)
    for step in save.good_steps()[:-3]:
        step()
    assert save.channel is not None
    save.channel.unread.append(("complete", save.MESSAGES["complete"]))
    save.the_helper_exits(0)
    save.a_moment_passes()
    save.a_moment_passes()
    save.a_moment_passes()
    save.all_succeeds()
    save.the_end_is_one()
    assert save.result is not None
    assert save.result.rc == 0, save.result
    save.teardown()


def test_a_helper_that_is_slow_to_die_is_reported_as_dead() -> None:
    """Not as one that hung up."""
    save = SaveOrders()
    save.begin(live=True, postcopy=False, device_model=False, steps=6)
    assert save.channel is not None
    assert save.world.alive is not None
    save.world.alive.dying = True
    save.world.do(save.channel.hangs_up)
    save.a_moment_passes()
    save.a_moment_passes()
    save.world.alive.killed = True
    save.the_helper_exits(0)
    for _ in range(3):
        save.a_moment_passes()
        save.all_succeeds()
    save.the_end_is_one()
    assert save.result is not None
    assert "killed by signal 9" in save.result.reason
    save.teardown()


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
@pytest.mark.parametrize("steps", range(15))
def test_every_single_fault_at_every_step(postcopy: bool, device_model: bool, steps: int) -> None:
    """After it, all goes on as well as it still can. (The random orders are likely to have each of
    these, but not certain to.)"""

    def begun() -> SaveOrders:
        save = SaveOrders()
        save.begin(live=True, postcopy=postcopy, device_model=device_model, steps=steps)
        return save

    first = begun()
    names = sorted(first.faults_now())
    first.teardown()
    for name in names:
        begun().one_fault(name)
