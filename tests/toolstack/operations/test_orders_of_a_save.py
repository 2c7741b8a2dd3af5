"""Every order of events in a whole save, faults included: stream writer, join, helper's run,
suspension, and `SaveOperation` and `SaveHelper`, which connect them. Only the edges are driven
(`tests.toolstack.operations.driven`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.toolstack.operations.driven_host import DOMID, DrivenHost
from tests.toolstack.operations.operation_orders import OperationOrders
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, PrecopyPolicy, XCFlags
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.streams import libxl_stream, records
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.hosts.interface import SuspendState
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.save import (
    PostcopyTransitioned,
    SaveOperation,
    SaveParameters,
    SaveResult,
)
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

MESSAGES: dict[str, dict[str, Any]] = {
    "log": {"level": 8, "errnoval": 5, "context": "xc", "formatted": "it fails"},
    "progress": {"context": "xc", "doing_what": "sending", "done": 1, "total": 2},
    "precopy_policy": {"iteration": 5, "total_written": 1, "dirty_count": 3},
    "switch_qemu_logdirty": {"domid": DOMID, "enable": 1},
    "suspend": {},
    "postcopy_transition": {},
    "complete": {"retval": 0, "errnoval": 0},
    "restore_results": {"store_gfn": 1, "console_gfn": 2},
}
"""Messages of a helper; the last one is not a save's."""
USUAL = sorted(MESSAGES.keys() - {"restore_results"})
REPEATED = frozenset({"log", "progress", "switch_qemu_logdirty"})
TRANSITION_END = libxl_stream.encode_record(RecordType.POSTCOPY_TRANSITION_END)
EMULATOR = {RecordType.EMULATOR_XENSTORE_DATA, RecordType.EMULATOR_CONTEXT}


def libxl_records(stream: bytes) -> list[RecordType]:
    """The records in a stream without libxc's part. Raises DecodeError."""
    libxl_stream.decode_header(stream[: libxl_stream.HEADER_SIZE])
    offset = libxl_stream.HEADER_SIZE
    found = []
    while offset < len(stream):
        number, length = records.decode_record_header(stream[offset : offset + 8], "record", offset)
        found.append(RecordType(number))
        offset += 8 + length + records.padding(length)
    assert offset == len(stream)
    return found


class SaveOrders(OperationOrders):
    ENDED = "save_ended"
    TRANSFERS = "write"
    MESSAGES = MESSAGES

    def __init__(self) -> None:
        super().__init__()
        self.stream = b""
        self.promises = 0
        self.refuses_promise = False

    @property
    def transition_begun(self) -> bool:
        return bool(self.promises)

    @initialize(
        live=st.booleans(),
        postcopy=st.booleans(),
        device_model=st.booleans(),
        steps=st.integers(0, 14),
        faults=st.sampled_from([0, 1, 1, 2, 2, 3, 40]),
        given_up=st.booleans(),
    )
    def begin_save(
        self,
        live: bool,
        postcopy: bool,
        device_model: bool,
        steps: int = 0,
        faults: int = 0,
        given_up: bool = True,
    ) -> None:
        """The first `steps` go well; then anything may happen, with at most so many `faults`. In
        the end it is given up, or all goes on as well as it still can."""
        self.faults_left = faults
        self.given_up = given_up
        self.host = DrivenHost(exists=True, device_model=device_model)
        self.live = live or postcopy
        self.postcopy = postcopy
        self.world.on_write = self.write_begins
        self.world.written = self.write_ends
        null = self.world.null
        request = HelperRequest(
            Operation.SAVE,
            DOMID,
            null,
            back_fd=null,
            xcflags=XCFlags.LIVE * self.live,
            hypervisor="sim:/nowhere",
            postcopy=postcopy,
        )
        strategy = MemoryStrategy.POSTCOPY if postcopy else MemoryStrategy.DEFAULT
        parameters = SaveParameters(request, strategy, PrecopyLimits(), self.transition)
        trace = self.world.tracer()
        context = Context(self.host, "sim:/nowhere", trace=trace, limits=Limits())

        self.start(lambda: SaveOperation(context, parameters))
        for step in self.good_steps()[:steps]:
            step()

    def good_steps(self) -> list[Callable[[], None]]:
        """The steps of a save that meets no trouble."""
        says = [partial(self.the_helper_says, name) for name in ("precopy_policy", "suspend")]
        more = [partial(self.the_helper_says, "postcopy_transition")] if self.postcopy else []
        return [
            self.all_succeeds,
            self.the_helper_greets,
            partial(self.the_helper_says, "switch_qemu_logdirty"),
            self.all_succeeds,
            *says,
            self.all_succeeds,
            partial(self.the_guest_answers, SuspendState.ACKNOWLEDGED, obstinate=True),
            partial(self.the_guest_answers, SuspendState.SUSPENDED, obstinate=False),
            self.all_succeeds,
            *more,
            *[self.all_succeeds] * len(more),
            partial(self.the_helper_says, "complete"),
            partial(self.the_helper_exits, 0),
            self.all_succeeds,
        ]

    # What is seen

    def transition(self) -> None:
        must = self.world.must
        asked = self.waits_for == "postcopy_transition"
        must(asked or not self.hears(), "promised, but nobody hands the guest over")
        must(not self.transfers(), "promised while something is written")
        must(not self.promises, "promised twice")
        must(not self.operation._join.rc, "promised after a failure")
        if self.refuses_promise:
            raise OSError(28, "the journal cannot be written")
        self.promises += 1

    def write_begins(self, data: bytes) -> None:
        must = self.world.must
        must(data != TRANSITION_END or self.promises == 1, "handed over without a promise")
        must(not self.torn(), "something is written after half a record")
        must(not self.transfers(), "two writes at once")
        asked = self.waits_for == "postcopy_transition"
        must(asked or not self.hears(), "written while libxc has the stream")

    def write_ends(self, data: bytes) -> None:
        self.stream += data

    def torn(self) -> bool:
        """Whether a write was cut off, so that only part of it may be out."""
        return any(what.startswith("write") for what in self.world.broken)

    # What happens

    @precondition(lambda self: self.world.waiting)
    @rule()
    def all_succeeds(self) -> None:
        while self.world.waiting:
            self.world.do(self.world.waiting[0].succeed)

    @precondition(lambda self: self.world.waiting)
    @rule(data=st.data())
    def something_succeeds(self, data: st.DataObject) -> None:
        waiting = data.draw(st.sampled_from(self.world.waiting))
        self.world.do(waiting.succeed)

    @precondition(lambda self: self.world.waiting and self.faults_left > 0)
    @rule(data=st.data(), timeout=st.booleans())
    def something_fails(self, data: st.DataObject, timeout: bool) -> None:
        waiting = data.draw(st.sampled_from(self.world.waiting))
        self.fault()
        error = TimeoutError("too slow") if timeout else OSError(5, "Input/output error")
        self.world.do(partial(waiting.fail, error))

    @precondition(lambda self: not self.promises and self.faults_left > 0)
    @rule()
    def nothing_can_be_promised(self) -> None:
        self.fault()
        self.refuses_promise = True

    @precondition(lambda self: self.free_to_speak())
    @rule(name=st.sampled_from(USUAL))
    def the_helper_says(self, name: str) -> None:
        if self.said(name) and name not in REPEATED:
            return  # it would be a fault: a second suspension, more precopy after its end
        if name == "postcopy_transition" and not self.said("suspend"):
            return
        self.says(name, MESSAGES[name])

    @precondition(lambda self: self.host.guest.asked)
    @rule(state=st.sampled_from(list(SuspendState)), obstinate=st.booleans())
    def the_guest_answers(self, state: SuspendState, obstinate: bool) -> None:
        guest = self.host.guest
        if guest.state not in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED):
            return
        if state in (SuspendState.REFUSED, SuspendState.CRASHED):
            self.fault()
        if state is not SuspendState.REQUESTED:
            guest.obstinate = obstinate
            self.world.do(partial(guest.goes_to, state))

    def all_goes_on(self) -> None:
        """Have all go on as well as it still can."""
        guest = self.host.guest
        for _ in range(12):
            self.all_succeeds()
            if guest.asked and guest.state in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED):
                self.world.do(partial(guest.goes_to, SuspendState.SUSPENDED))
            self.the_helper_goes_on()
            if self.free_to_speak():
                self.the_helper_says("complete")
            self.world.loop.passes(0.2)

    # What must hold

    @invariant()
    def no_wait_without_an_end(self) -> None:
        """Something is in progress, or the helper lives (both within limits); or all is over."""
        if hasattr(self, "task") and not self.task.done():
            assert self.world.waiting or self.world.alive or self.host.guest.asked

    def judge(self) -> None:
        request = self.host.guest.request
        assert request is None or request.closed
        self.judge_guest(self.result)
        self.judge_stream(self.result)

    def faults_now(self) -> dict[str, Callable[[], object]]:
        found, guest = super().faults_now(), self.host.guest
        found["no promise"] = partial(setattr, self, "refuses_promise", True)
        if guest.asked and guest.state in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED):
            for state in (SuspendState.REFUSED, SuspendState.CRASHED):
                found[state.value] = partial(self.world.do, partial(guest.goes_to, state))
        return found

    def judge_guest(self, result: SaveResult) -> None:
        """The caller must know that a guest is suspended, or will be, to resume it."""
        assert result.suspended or not self.host.guest.may_suspend
        if self.world.processes and not self.said("complete"):
            assert self.world.events("logdirty_off"), "log-dirty mode was left on"

    def judge_stream(self, result: SaveResult) -> None:
        assert (result.postcopy_transitioned is PostcopyTransitioned.DONE) == (
            self.transition_done()
        )
        if self.transition_begun:
            assert result.postcopy_transitioned is not PostcopyTransitioned.NEVER
        if result.rc:
            return
        if self.transition_done() and self.world.events("failure"):
            return  # the destination had all of the guest before
        kinds = libxl_records(self.stream)
        assert not self.torn()
        assert [kind for kind in kinds if kind not in EMULATOR] == (
            [RecordType.LIBXC_CONTEXT, RecordType.POSTCOPY_TRANSITION_END, RecordType.END]
            if self.transition_begun
            else [RecordType.LIBXC_CONTEXT, RecordType.END]
        )
        assert kinds.count(RecordType.EMULATOR_CONTEXT) == self.host.device_model
        assert kinds.count(RecordType.EMULATOR_XENSTORE_DATA) == self.host.device_model

    def transition_done(self) -> bool:
        return self.transition_begun and TRANSITION_END in self.stream


SaveOrders.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestSave = SaveOrders.TestCase


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
def test_a_save_that_goes_well_is_one_of_the_orders(postcopy: bool, device_model: bool) -> None:
    """Otherwise nothing that is judged at a good end would be tested."""
    save = SaveOrders()
    save.begin_save(live=True, postcopy=postcopy, device_model=device_model, steps=100)
    save.the_end_is_one()
    assert save.result is not None
    assert (save.result.rc, save.result.suspended, save.trouble) == (0, True, 0)
    policy = PrecopyPolicy.POSTCOPY if postcopy else PrecopyPolicy.STOP_AND_COPY
    assert ("precopy_policy", policy) in save.answers
    save.teardown()


def test_success_that_is_read_only_after_the_helpers_end_is_success() -> None:
    """It is not a failure that nobody is left to take the answer."""
    save = SaveOrders()
    save.begin_save(live=True, postcopy=False, device_model=False)
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
    save.begin_save(live=True, postcopy=False, device_model=False, steps=6)
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
        save.begin_save(live=True, postcopy=postcopy, device_model=device_model, steps=steps)
        return save

    first = begun()
    names = sorted(first.faults_now())
    first.teardown()
    for name in names:
        begun().one_fault(name)
