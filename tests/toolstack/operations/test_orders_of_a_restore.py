"""Every order of events in a whole restore, faults included: stream reader, join, postcopy join,
helper's run, and `RestoreOperation` and `SaveHelper`, which connect them. Only the edges are driven
(`tests.toolstack.operations.driven`)."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import settings

from tests.toolstack.operations.restore_orders import RestoreOrders
from xen_save_helper.ipc_schema.errors import Error

RestoreOrders.TestCase.settings = settings(max_examples=250, stateful_step_count=30)
TestRestore = RestoreOrders.TestCase


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
def test_a_restore_that_goes_well_is_one_of_the_orders(postcopy: bool, device_model: bool) -> None:
    """Otherwise nothing that is judged at a good end would be tested."""
    restore = RestoreOrders()
    restore.begin(postcopy=postcopy, device_model=device_model, steps=100)
    restore.the_end_is_one()
    assert restore.result is not None
    assert (restore.result.rc, restore.trouble) == (0, 0)
    assert restore.result.postcopy_resumed == postcopy
    restore.teardown()


def test_the_first_failure_is_kept_though_the_resumption_ends_before_the_stream() -> None:
    """The caller gives up while a postcopy domain's device model starts; that then fails, before
    the helper, and with it the stream, has stopped."""
    restore = RestoreOrders()
    restore.begin(postcopy=True, device_model=True, steps=10, faults=2)
    assert [waiting.what for waiting in restore.world.waiting] == ["call restore_emulator"]
    restore.the_caller_gives_up()
    restore.world.do(partial(restore.world.waiting[0].fail, TimeoutError("slow")))
    restore.teardown()
    assert restore.result is not None
    assert (restore.result.rc, restore.result.reason) == (
        Error.ABORTED,
        "the restore was cancelled",
    )


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
@pytest.mark.parametrize("steps", range(15))
def test_every_single_fault_at_every_step(postcopy: bool, device_model: bool, steps: int) -> None:
    """After it, all goes on as well as it still can. (The random orders are likely to have each of
    these, but not certain to.)"""

    def begun() -> RestoreOrders:
        restore = RestoreOrders()
        restore.begin(postcopy=postcopy, device_model=device_model, steps=steps)
        return restore

    first = begun()
    names = sorted(first.faults_now())
    first.teardown()
    for name in names:
        begun().one_fault(name)
