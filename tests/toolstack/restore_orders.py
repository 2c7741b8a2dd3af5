"""The surroundings of a whole restore, as a hypothesis machine: what can happen, and what must hold
whatever does. Only the edges are driven (`tests.toolstack.driven`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ipc_schema import libxl_stream, records
from ipc_schema.errors import Error
from ipc_schema.libxl_stream import EmulatorId, RecordType
from tests.toolstack.driven import Waiting, World
from tests.toolstack.driven_host import DrivenHost
from toolstack.context import Context
from toolstack.fd_io import UnexpectedEnd
from toolstack.limits import Limits
from toolstack.restore_operation import RestoreOperation, RestoreParameters, RestoreResult

MESSAGES: dict[str, dict[str, Any]] = {
    "log": {"level": 8, "errnoval": 5, "context": "xc", "formatted": "it fails"},
    "static_data_done": {"missing": 0},
    "restore_results": {"store_gfn": 1, "console_gfn": 2},
    "postcopy_transition": {},
    "complete": {"retval": 0, "errnoval": 0},
    "suspend": {},
}
"""What a helper says, and the last what it must not."""
USUAL = sorted(MESSAGES.keys() - {"suspend"})
LONG = 1000.0
"""Seconds, more than any limit."""

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


class RestoreOrders(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.result: RestoreResult | None = None
        self.coming = libxl_stream.encode_header()
        self.resumed = 0
        self.refuses_resumption = False
        self.first_rc = 0
        self.trouble = 0
        """How much has happened that may end a restore badly."""

    @initialize(
        postcopy=st.booleans(),
        device_model=st.booleans(),
        steps=st.integers(0, 14),
        faults=st.sampled_from([0, 1, 1, 2, 2, 3, 40]),
        given_up=st.booleans(),
    )
    def begin(
        self,
        postcopy: bool,
        device_model: bool,
        steps: int = 0,
        faults: int = 0,
        given_up: bool = True,
    ) -> None:
        """It goes well for so many `steps`; then anything may come, and so many faults. In the end
        it is given up, or all goes on as well as it still can."""
        self.faults_left = faults
        self.given_up = given_up
        self.postcopy = postcopy
        self.device_model = device_model
        self.host = DrivenHost(exists=False, device_model=device_model)
        self.world.octets = self.octets
        null = self.world.null
        config = {
            "c_info": {"type": "hvm"},
            "b_info": {"device_model_version": "qemu_xen" if device_model else "none"},
        }
        wanted = RestoreParameters(config, "g", null, null if postcopy else -1, self.on_resume)
        trace = self.world.tracer()
        context = Context(self.host, "sim:/nowhere", trace=trace, limits=Limits())

        def start() -> None:
            self.operation = RestoreOperation(context, wanted)
            self.task = asyncio.ensure_future(self.operation.run())

        self.world.do(start)
        for step in self.good_steps()[:steps]:
            step()

    def good_steps(self) -> list[Callable[[], None]]:
        """A restore that nothing happens to."""
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

    def octets(self, size: int) -> bytes:
        octets, self.coming = self.coming[:size], self.coming[size:]
        assert len(octets) == size, "more is read than the record has"
        return octets

    def on_resume(self) -> None:
        must, join = self.world.must, self.operation._join
        must(("postcopy_transition", 1) in self.channel.answers, "resumed without a transition")
        must(not (join.completed and join.rc), "resumed after its stream has failed")
        if self.refuses_resumption:
            raise OSError(5, "the journal cannot be written")
        self.resumed += 1

    def reads(self) -> list[Waiting]:
        return [waiting for waiting in self.world.waiting if waiting.what.startswith("read")]

    def wants_record(self) -> bool:
        return any(waiting.what == "read libxl record" for waiting in self.reads()) and (
            not self.coming
        )

    @property
    def channel(self) -> Any:
        return self.world.channels[-1] if self.world.channels else None

    def hears(self) -> bool:
        return bool(self.world.alive and self.channel.listening)

    def free_to_speak(self) -> bool:
        greeted = self.world.events("helper ready")
        return bool(self.hears() and greeted and not self.channel.waiting)

    def said(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.world.events("callback") if event["name"] == name]

    def fault(self) -> None:
        """What happens now may end the restore badly."""
        self.trouble += 1
        self.faults_left -= 1

    # What happens

    @precondition(lambda self: self.world.waiting)
    @rule()
    def calls_succeed(self) -> None:
        while calls := [w for w in self.world.waiting if w not in self.reads()]:
            self.world.do(calls[0].succeed)

    @precondition(lambda self: self.reads() and self.coming)
    @rule()
    def something_comes(self) -> None:
        self.world.do(self.reads()[0].succeed)

    @precondition(lambda self: self.wants_record())
    @rule(name=st.sampled_from(["LIBXC_CONTEXT", "END", "optional"]))
    def the_stream_brings(self, name: str) -> None:
        self.coming = RECORDS[name]
        while self.coming and self.reads():
            self.world.do(self.reads()[0].succeed)

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
        if waiting not in self.reads() and isinstance(error, UnexpectedEnd):
            error = OSError(5, "I/O error")
        self.world.do(partial(waiting.fail, error))

    @precondition(lambda self: not self.world.processes and self.faults_left > 0)
    @rule()
    def helpers_cannot_be_started(self) -> None:
        self.fault()
        self.world.cannot_start = True

    @precondition(lambda self: not self.resumed and self.faults_left > 0)
    @rule()
    def the_caller_cannot_resume(self) -> None:
        self.fault()
        self.refuses_resumption = True

    @precondition(lambda self: self.hears() and not self.world.events("helper ready"))
    @rule()
    def the_helper_greets(self) -> None:
        self.world.do(self.channel.hello)

    @precondition(lambda self: self.free_to_speak())
    @rule(name=st.sampled_from(USUAL))
    def the_helper_says(self, name: str) -> None:
        early = name == "complete" and not self.said("restore_results")
        late = name == "postcopy_transition" and (not self.postcopy or self.said(name))
        if early or late:
            return  # it would be a fault
        self.world.do(partial(self.channel.says, name, MESSAGES[name]))

    @precondition(lambda self: self.hears() and self.faults_left > 0)
    @rule(name=st.sampled_from(sorted(MESSAGES)))
    def the_helper_says_anything(self, name: str) -> None:
        self.fault()
        self.world.do(partial(self.channel.says, name, MESSAGES[name]))

    @precondition(lambda self: self.free_to_speak() and self.faults_left > 0)
    @rule()
    def libxc_fails(self) -> None:
        self.fault()
        self.world.do(partial(self.channel.says, "complete", {"retval": -1, "errnoval": 5}))

    @precondition(lambda self: self.hears() and self.faults_left > 0)
    @rule(how=st.sampled_from(["garbage", "hangs_up"]))
    def the_channel_fails(self, how: str) -> None:
        self.fault()
        self.world.do(getattr(self.channel, how))

    @precondition(lambda self: self.channel is not None and self.faults_left > 0)
    @rule()
    def no_answer_can_be_written(self) -> None:
        self.fault()
        self.channel.broken = True

    @precondition(lambda self: self.world.alive and (self.said("complete") or self.faults_left > 0))
    @rule(status=st.sampled_from([0, 0, 0, 3]))
    def the_helper_exits(self, status: int) -> None:
        process = self.world.alive
        assert process is not None
        if status or process.killed or not self.said("complete"):
            self.fault()
        self.world.do(partial(process.exits, -9 if process.killed else status))

    @rule()
    def a_moment_passes(self) -> None:
        """Longer than a dying process keeps its connection, shorter than any limit."""
        self.world.loop.passes(0.2)

    @precondition(lambda self: self.faults_left > 0)
    @rule(seconds=st.sampled_from([5.0, 11.0, 61.0, 121.0]))
    def time_passes(self, seconds: float) -> None:
        self.fault()
        self.world.loop.passes(seconds)

    @precondition(lambda self: self.faults_left > 0)
    @rule()
    def the_caller_gives_up(self) -> None:
        self.fault()
        self.world.do(self.operation.cancel)

    def all_goes_on(self) -> None:
        """As well as it still can."""
        for _ in range(12):
            self.calls_succeed()
            process = self.world.alive
            if process is not None and (
                process.killed or process.terminated or self.said("complete")
            ):
                self.the_helper_exits(0)
            elif self.hears() and not self.world.events("helper ready"):
                self.the_helper_greets()
            elif self.free_to_speak():
                self.the_helper_says("restore_results")
                self.the_helper_says("complete")
            if self.coming and self.reads():
                self.something_comes()
            elif self.wants_record():
                self.the_stream_brings(self.next_record())
            self.world.loop.passes(0.2)

    def next_record(self) -> str:
        if not self.world.processes:
            return "LIBXC_CONTEXT"
        asked = self.hears() and self.channel.waiting == "postcopy_transition"
        return "POSTCOPY_TRANSITION_END" if asked else "END"

    # What must hold

    @invariant()
    def nothing_went_wrong_in_between(self) -> None:
        assert self.world.faults == []

    @invariant()
    def one_reader_at_a_time(self) -> None:
        assert len(self.reads()) <= 1
        if self.reads() and self.world.alive and not self.world.alive.killed:
            asked = self.channel.waiting == "postcopy_transition"
            assert asked or not self.channel.listening, "libxc has the stream"

    @invariant()
    def the_first_failure_is_kept(self) -> None:
        if not hasattr(self, "operation"):
            return
        rc = self.operation._join.rc
        assert self.first_rc in (0, rc), f"rc was {self.first_rc}, and is {rc}"
        self.first_rc = rc

    @invariant()
    def after_a_failure_nothing_is_read(self) -> None:
        assert not (self.first_rc and self.reads())

    @invariant()
    def no_wait_without_an_end(self) -> None:
        """What is begun has a limit; a helper is heard, or has one; or it is all over."""
        if hasattr(self, "task") and not self.task.done():
            assert self.world.waiting or self.world.alive

    @invariant()
    def the_end_is_one(self) -> None:
        if hasattr(self, "task") and self.task.done() and self.result is None:
            self.result = self.task.result()
            self.judge(self.result)

    def judge(self, result: RestoreResult) -> None:
        """Once, at the end."""
        assert len(self.world.events("restore_ended")) == 1
        assert len(self.world.processes) <= 1
        assert self.world.alive is None, "a process is left behind"
        assert all(channel.closed for channel in self.world.channels)
        assert self.world.waiting == [], "something is left under way"
        assert self.world.loop.descriptors() == 0
        self.judge_rc(result)
        self.judge_domain(result)
        if not result.rc:
            self.judge_success()

    def judge_rc(self, result: RestoreResult) -> None:
        failures = self.world.events("failure")
        assert bool(result.rc) == bool(result.reason)
        if result.rc:
            assert result.rc in list(Error)
            assert self.trouble, f"rc {result.rc} out of nothing: {result.reason}"
            assert result.reason == failures[0]["reason"], "not the first reason"
        if self.first_rc:
            assert result.rc == self.first_rc

    def judge_domain(self, result: RestoreResult) -> None:
        """It is there after a success, and after nothing else."""
        assert (result.domid is not None) == self.host.exists
        if result.rc:
            assert not self.host.exists or "call destroy" in self.world.broken
        assert self.resumed <= 1
        assert self.host.unpaused <= self.resumed
        assert result.postcopy_resumed == bool(self.resumed)

    def judge_success(self) -> None:
        (complete,) = self.said("complete")
        (ended,) = self.world.events("helper ended")
        assert (complete["retval"], ended["status"]) == (0, 0), "success of a helper that failed"
        assert self.said("restore_results")
        assert self.world.events("stream_read")[-1]["record"] == "END"
        transitioned = ("postcopy_transition", 1) in self.channel.answers
        assert self.host.unpaused == transitioned, "let run, and not by postcopy"
        read = [event["record"] for event in self.world.events("stream_read")]
        xenstore = XENSTORE if "EMULATOR_XENSTORE_DATA" in read else []
        context = CONTEXT if "EMULATOR_CONTEXT" in read else None
        assert self.host.restored == ([(xenstore, context)] if self.device_model else [])

    def teardown(self) -> None:
        """Nobody helps any more: the helper does not even die by itself, the other side says
        nothing. Whoever waits has a limit."""
        try:
            if hasattr(self, "task"):
                if not self.given_up:
                    self.all_goes_on()
                self.an_answer_does_not_stay_out()
                self.world.do(self.operation.cancel)
                for _ in range(12):
                    process = self.world.alive
                    if process is not None and process.killed:
                        self.world.do(partial(process.exits, -9))
                    self.trouble += 1
                    self.world.loop.passes(LONG)
                assert self.task.done(), "it does not come to its end"
                self.nothing_went_wrong_in_between()
                self.the_first_failure_is_kept()
                self.after_a_failure_nothing_is_read()
                self.the_end_is_one()
                self.nothing_is_done_after_the_end()
        finally:
            self.world.close()

    def an_answer_does_not_stay_out(self) -> None:
        """Nobody gives up, and still a helper that waits for its answer is given one, or ended."""
        process = self.world.alive
        if process is not None and self.hears() and self.channel.waiting:
            self.trouble += 1
            self.world.loop.passes(LONG)
            assert not self.channel.waiting or process.terminated or process.killed

    def nothing_is_done_after_the_end(self) -> None:
        events = len(self.world.trace)
        self.world.do(self.operation.cancel)
        self.world.loop.passes(LONG)
        assert self.world.waiting == []
        assert len(self.world.trace) == events


def faults_of(restore: RestoreOrders) -> dict[str, Callable[[], object]]:
    """What can go wrong now, by name: the first of each kind."""
    world = restore.world

    def does(act: Callable[[], object]) -> Callable[[], object]:
        return partial(world.do, act)

    found: dict[str, Callable[[], object]] = {
        "given up": does(restore.operation.cancel),
        "no resumption": partial(setattr, restore, "refuses_resumption", True),
    }
    for waiting in world.waiting:
        for error in (OSError(5, "EIO"), TimeoutError("slow"), UnexpectedEnd("the end")):
            if waiting in restore.reads() or not isinstance(error, EOFError):
                what = f"{waiting.what} fails with {type(error).__name__}"
                found[what] = does(partial(waiting.fail, error))
    if restore.wants_record():
        for name in RECORDS.keys() - {"too long"}:
            found[f"{name} comes"] = partial(restore.the_stream_brings, name)
    for seconds in (11.0, 61.0, 121.0):
        found[f"{seconds} s pass"] = partial(world.loop.passes, seconds)
    if not world.processes:
        found["no helper can be started"] = partial(setattr, world, "cannot_start", True)
    if restore.channel is not None:
        found["no answer can be written"] = partial(setattr, restore.channel, "broken", True)
    if world.alive is not None:
        for status in (0, 3, -11):
            found[f"exit {status}"] = does(partial(world.alive.exits, status))
    if restore.hears():
        for name, fields in MESSAGES.items():
            found[f"says {name}"] = does(partial(restore.channel.says, name, fields))
        failed = {"retval": -1, "errnoval": 5}
        found["libxc fails"] = does(partial(restore.channel.says, "complete", failed))
        for how in ("garbage", "hangs_up"):
            found[how] = does(getattr(restore.channel, how))
    return found
