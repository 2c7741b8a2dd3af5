"""Every order of events in a whole restore, faults included: stream reader, join, postcopy join,
helper's run, and `RestoreOperation` and `SaveHelper`, which connect them. Only the edges are driven
(`tests.toolstack.operations.driven`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from tests.toolstack.operations.driven_host import DrivenHost
from tests.toolstack.operations.operation_orders import OperationOrders
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams import libxl_stream, records
from xen_save_helper.ipc_schema.streams.libxl_stream import EmulatorId, RecordType
from xen_save_helper.toolstack.aio.fd_io import UnexpectedEnd
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.operations.restore import (
    RestoreOperation,
    RestoreParameters,
    RestoreResult,
)

MESSAGES: dict[str, dict[str, Any]] = {
    "log": {"level": 8, "errnoval": 5, "context": "xc", "formatted": "it fails"},
    "static_data_done": {"missing": 0},
    "restore_results": {"store_gfn": 1, "console_gfn": 2},
    "postcopy_transition": {},
    "complete": {"retval": 0, "errnoval": 0},
    "suspend": {},
}
"""Messages of a helper; the last one is not a restore's."""
USUAL = sorted(MESSAGES.keys() - {"suspend"})

QEMU = EmulatorId.QEMU_UPSTREAM
XENSTORE = [(b"physmap/0", b"1")]
CONTEXT = b"QEVM"
BODIES = {
    RecordType.EMULATOR_XENSTORE_DATA: libxl_stream.encode_emulator_xenstore_data(
        QEMU, 0, XENSTORE
    ),
    RecordType.EMULATOR_CONTEXT: libxl_stream.encode_emulator_context(QEMU, 0, CONTEXT),
    RecordType.CHECKPOINT_STATE: bytes(4),
}
RECORDS = {
    kind.name: libxl_stream.encode_record(kind, BODIES.get(kind, b"")) for kind in RecordType
} | {
    "unknown": records.encode_record(0x77, b""),
    "optional": records.encode_record(0x80000077, b"body"),
    "too long": records.encode_record_header(RecordType.END, 8) + bytes(8),
    "escaping": libxl_stream.encode_record(
        RecordType.EMULATOR_XENSTORE_DATA,
        libxl_stream.encode_emulator_xenstore_data(QEMU, 0, [(b"../x", b"1")]),
    ),
}


class RestoreOrders(OperationOrders):
    ENDED = "restore_ended"
    TRANSFERS = "read"
    MESSAGES = MESSAGES

    def __init__(self) -> None:
        super().__init__()
        self.coming = libxl_stream.encode_header()
        self.promises = 0
        self.resumed = 0
        self.refuses_resumption = False

    @initialize(
        postcopy=st.booleans(),
        device_model=st.booleans(),
        steps=st.integers(0, 14),
        faults=st.sampled_from([0, 1, 1, 2, 2, 3, 40]),
        given_up=st.booleans(),
    )
    def begin_restore(
        self,
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
        self.postcopy = postcopy
        self.device_model = device_model
        self.host = DrivenHost(exists=False, device_model=device_model)
        self.world.next_bytes = self.next_bytes
        null = self.world.null
        config = {
            "c_info": {"type": "hvm"},
            "b_info": {"device_model_version": "qemu_xen" if device_model else "none"},
        }
        wanted = RestoreParameters(config, "g", null, null if postcopy else -1, self.on_resume)
        trace = self.world.tracer()
        context = Context(self.host, "sim:/nowhere", trace=trace, limits=Limits())

        self.start(lambda: RestoreOperation(context, wanted))
        for step in self.good_steps()[:steps]:
            step()

    def good_steps(self) -> list[Callable[[], None]]:
        """The steps of a restore that meets no trouble."""
        brings = self.the_stream_brings
        emulator = ["EMULATOR_XENSTORE_DATA", "EMULATOR_CONTEXT"] if self.device_model else []
        state = [partial(brings, name) for name in emulator]
        says = self.the_helper_says
        transition: list[Callable[[], None]] = [
            partial(says, "postcopy_transition"),
            *state,
            partial(brings, "POSTCOPY_TRANSITION_END"),
            self.calls_succeed,
        ]
        return [
            self.calls_succeed,
            self.something_comes,
            partial(brings, "LIBXC_CONTEXT"),
            self.the_helper_greets,
            partial(says, "static_data_done"),
            partial(says, "restore_results"),
            *(transition if self.postcopy else []),
            partial(says, "complete"),
            partial(self.the_helper_exits, 0),
            *(state if not self.postcopy else []),
            partial(brings, "END"),
            self.calls_succeed,
        ]

    # What is seen

    def next_bytes(self, size: int) -> bytes:
        data, self.coming = self.coming[:size], self.coming[size:]
        assert len(data) == size, "more is read than the record has"
        return data

    def on_resume(self) -> None:
        must, join = self.world.must, self.operation._join
        done = [event["rc"] for event in self.world.events("postcopy_transition_done")]
        must(done == [0], "resumed without a transition")
        must(not self.promises, "promised twice")
        must(not self.unpauses(), "let run before the promise")
        self.promises += 1
        must(not (join.completed and join.rc), "resumed after its stream has failed")
        if self.refuses_resumption:
            raise OSError(5, "the journal cannot be written")
        self.resumed += 1

    def unpauses(self) -> bool:
        """Whether the domain is being unpaused, or was."""
        asked = any(waiting.what == "call unpause" for waiting in self.world.waiting)
        return bool(asked or self.host.unpaused)

    def wants_record(self) -> bool:
        waits = any(read.what == "read libxl record header" for read in self.transfers())
        return waits and not self.coming

    # What happens

    @precondition(lambda self: self.world.waiting)
    @rule()
    def calls_succeed(self) -> None:
        while calls := [w for w in self.world.waiting if w not in self.transfers()]:
            self.world.do(calls[0].succeed)

    @precondition(lambda self: self.transfers() and self.coming)
    @rule()
    def something_comes(self) -> None:
        self.world.do(self.transfers()[0].succeed)

    @precondition(lambda self: self.wants_record())
    @rule(optional=st.booleans())
    def the_right_record_comes(self, optional: bool) -> None:
        self.the_stream_brings("optional" if optional else self.next_record())

    def the_stream_brings(self, name: str) -> None:
        self.coming = RECORDS[name]
        while self.coming and self.transfers():
            self.world.do(self.transfers()[0].succeed)

    @precondition(lambda self: self.wants_record() and self.faults_left > 0)
    @rule(name=st.sampled_from(sorted(RECORDS)))
    def the_stream_brings_anything(self, name: str) -> None:
        self.fault()
        self.the_stream_brings(name)
        if name == "too long":
            self.coming = b""

    @precondition(lambda self: self.world.waiting and self.faults_left > 0)
    @rule(
        data=st.data(),
        error=st.sampled_from(
            [TimeoutError("slow"), OSError(5, "I/O error"), UnexpectedEnd("end")]
        ),
    )
    def something_fails(self, data: st.DataObject, error: Exception) -> None:
        waiting = data.draw(st.sampled_from(self.world.waiting))
        self.fault()
        if waiting not in self.transfers() and isinstance(error, UnexpectedEnd):
            error = OSError(5, "I/O error")
        self.world.do(partial(waiting.fail, error))

    @precondition(lambda self: not self.resumed and self.faults_left > 0)
    @rule()
    def the_caller_cannot_resume(self) -> None:
        self.fault()
        self.refuses_resumption = True

    @precondition(lambda self: self.free_to_speak())
    @rule(name=st.sampled_from(USUAL))
    def the_helper_says(self, name: str) -> None:
        early = name == "complete" and not self.said("restore_results")
        late = name == "postcopy_transition" and (not self.postcopy or self.said(name))
        if early or late:
            return  # it would be a fault
        self.says(name, MESSAGES[name])

    def all_goes_on(self) -> None:
        """Have all go on as well as it still can."""
        for _ in range(12):
            self.calls_succeed()
            self.the_helper_goes_on()
            if self.free_to_speak():
                self.the_helper_says("restore_results")
                self.the_helper_says("complete")
            if self.coming and self.transfers():
                self.something_comes()
            elif self.wants_record():
                self.the_stream_brings(self.next_record())
            self.world.loop.passes(0.2)

    def next_record(self) -> str:
        if not self.world.processes:
            return "LIBXC_CONTEXT"
        if self.device_model and "EMULATOR_CONTEXT" not in self.read():
            return "EMULATOR_CONTEXT"
        asked = self.waits_for == "postcopy_transition"
        return "POSTCOPY_TRANSITION_END" if asked else "END"

    def read(self) -> list[str | int]:
        return [event["record"] for event in self.world.events("stream_read")]

    # What must hold

    @invariant()
    def it_runs_only_once_that_is_promised(self) -> None:
        assert self.resumed or not self.unpauses()

    @invariant()
    def one_reader_at_a_time(self) -> None:
        assert len(self.transfers()) <= 1
        if self.transfers() and self.world.alive and not self.world.alive.killed:
            asked = self.waits_for == "postcopy_transition"
            assert asked or not self.hears(), "libxc has the stream"

    @invariant()
    def no_wait_without_an_end(self) -> None:
        """Something is in progress, or the helper lives (both within limits); or all is over."""
        if hasattr(self, "task") and not self.task.done():
            assert self.world.waiting or self.world.alive

    def faults_now(self) -> dict[str, Callable[[], object]]:
        found = super().faults_now()
        found["no resumption"] = partial(setattr, self, "refuses_resumption", True)
        for read in self.transfers():
            found["the stream ends"] = partial(
                self.world.do, partial(read.fail, UnexpectedEnd("the end"))
            )
        if self.wants_record():
            for name in RECORDS.keys() - {"too long"}:
                found[f"{name} comes"] = partial(self.the_stream_brings, name)
        return found

    def transition_done(self) -> bool:
        return ("postcopy_transition", 1) in self.answers

    def judge(self) -> None:
        self.judge_domain(self.result)
        if not self.result.rc:
            self.judge_success()

    def judge_domain(self, result: RestoreResult) -> None:
        """There is a domain after a success, and only then."""
        assert (result.domid is not None) == self.host.exists
        if result.rc:
            assert not self.host.exists or "call destroy" in self.world.broken
        assert self.resumed <= 1
        assert self.host.unpaused <= self.resumed
        assert result.postcopy_resumed == bool(self.resumed)

    def judge_success(self) -> None:
        assert self.said("restore_results")
        read, transitioned = self.read(), self.transition_done()
        # Past the transition, once all is there, nothing more in the stream matters.
        troubled = transitioned and self.world.events("failure")
        assert read[-1] == "END" or troubled
        assert self.host.unpaused == transitioned, "let run, and not by postcopy"
        if transitioned and not troubled:
            after = read[read.index("POSTCOPY_TRANSITION_END") + 1 :]
            assert [record for record in after if isinstance(record, str)] == ["END"]
        has_data = self.device_model and "EMULATOR_XENSTORE_DATA" in read
        xenstore = XENSTORE if has_data else []
        context = CONTEXT if self.device_model else None
        assert self.host.restored == [(xenstore, context)], "finished once, by what has come"


RestoreOrders.TestCase.settings = settings(max_examples=120, stateful_step_count=30)
TestRestore = RestoreOrders.TestCase


@pytest.mark.parametrize("postcopy", [False, True])
@pytest.mark.parametrize("device_model", [False, True])
def test_a_restore_that_goes_well_is_one_of_the_orders(postcopy: bool, device_model: bool) -> None:
    """Otherwise nothing that is judged at a good end would be tested."""
    restore = RestoreOrders()
    restore.begin_restore(postcopy=postcopy, device_model=device_model, steps=100)
    restore.the_end_is_one()
    assert restore.result is not None
    assert (restore.result.rc, restore.trouble) == (0, 0)
    assert restore.result.postcopy_resumed == postcopy
    restore.teardown()


def test_the_first_failure_is_kept_though_the_resumption_ends_before_the_stream() -> None:
    """The caller gives up while a postcopy domain's device model starts; that then fails, before
    the helper, and with it the stream, has stopped."""
    restore = RestoreOrders()
    restore.begin_restore(postcopy=True, device_model=True, steps=10, faults=2)
    assert [waiting.what for waiting in restore.world.waiting] == ["call rebuild_done"]
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
        restore.begin_restore(postcopy=postcopy, device_model=device_model, steps=steps)
        return restore

    first = begun()
    names = sorted(first.faults_now())
    first.teardown()
    for name in names:
        begun().one_fault(name)
