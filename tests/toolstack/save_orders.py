"""The surroundings of a whole save, as a hypothesis machine: what can happen, and what must hold
whatever does. Only the edges are driven (`tests.toolstack.driven`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from helper.hypervisors.interface import SuspendState
from ipc_schema import libxl_stream, records
from ipc_schema.errors import Error
from ipc_schema.libxl_stream import RecordType
from ipc_schema.messages import Operation, XCFlags
from tests.toolstack.driven import Waiting, World
from tests.toolstack.driven_host import DOMID, DrivenHost
from toolstack.context import Context
from toolstack.limits import Limits
from toolstack.precopy_policy import MemoryStrategy, PrecopyLimits
from toolstack.save_helper import HelperRequest
from toolstack.save_operation import SaveOperation, SaveParameters
from toolstack.save_result import PostcopyTransitioned, SaveResult

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
"""What a helper says, and the last what it must not."""
USUAL = sorted(MESSAGES.keys() - {"restore_results"})
REPEATED = frozenset({"log", "progress", "switch_qemu_logdirty"})
LONG = 1000.0
"""Seconds, more than any limit."""
EMULATOR = {RecordType.EMULATOR_XENSTORE_DATA, RecordType.EMULATOR_CONTEXT}


def libxl_records(stream: bytes) -> list[RecordType]:
    """The records that stand in a stream without libxc's part. Raises DecodeError."""
    libxl_stream.decode_header(stream[: libxl_stream.HEADER_SIZE])
    offset = libxl_stream.HEADER_SIZE
    found = []
    while offset < len(stream):
        number, length = records.decode_record_header(stream[offset : offset + 8], "record", offset)
        found.append(RecordType(number))
        offset += 8 + length + records.padding(length)
    assert offset == len(stream)
    return found


class SaveOrders(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.result: SaveResult | None = None
        self.stream = b""
        self.transition_begun = False
        self.first_rc = 0
        self.trouble = 0
        """How much has happened that may end a save badly."""

    @initialize(
        live=st.booleans(),
        postcopy=st.booleans(),
        device_model=st.booleans(),
        steps=st.integers(0, 14),
        faults=st.sampled_from([0, 1, 1, 2, 2, 3, 40]),
        given_up=st.booleans(),
    )
    def begin(
        self,
        live: bool,
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
        self.context = Context(self.host, "sim:/nowhere", trace=trace, limits=Limits())

        def start() -> None:
            self.operation = SaveOperation(self.context, parameters)
            self.task = asyncio.ensure_future(self.operation.run())

        self.world.do(start)
        for step in self.good_steps()[:steps]:
            step()

    def good_steps(self) -> list[Callable[[], None]]:
        """A save that nothing happens to."""
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
        self.transition_begun = True

    def write_begins(self, _data: bytes) -> None:
        must = self.world.must
        must(not self.torn(), "something is written after half a record")
        must(not self.writes(), "two writes at once")
        asked = self.hears() and self.channel.waiting == "postcopy_transition"
        must(asked or not self.hears(), "written while libxc has the stream")

    def write_ends(self, data: bytes) -> None:
        self.stream += data

    def torn(self) -> bool:
        """Whether a write was cut off, and may be out in part."""
        return any(what.startswith("write") for what in self.world.broken)

    def writes(self) -> list[Waiting]:
        return [waiting for waiting in self.world.waiting if waiting.what.startswith("write")]

    @property
    def channel(self) -> Any:
        return self.world.channels[-1] if self.world.channels else None

    def hears(self) -> bool:
        return bool(self.world.alive and self.channel.listening)

    def free_to_speak(self) -> bool:
        greeted = self.world.events("helper ready")
        return bool(self.hears() and greeted and not self.channel.waiting)

    def fault(self) -> None:
        """What happens now may end the save badly."""
        self.trouble += 1
        self.faults_left -= 1

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

    @precondition(lambda self: not self.world.processes and self.faults_left > 0)
    @rule()
    def helpers_cannot_be_started(self) -> None:
        self.fault()
        self.world.cannot_start = True

    @precondition(lambda self: self.hears() and not self.world.events("helper ready"))
    @rule()
    def the_helper_greets(self) -> None:
        self.world.do(self.channel.hello)

    @precondition(lambda self: self.free_to_speak())
    @rule(name=st.sampled_from(USUAL))
    def the_helper_says(self, name: str) -> None:
        said = {event["name"] for event in self.world.events("callback")}
        if name in said and name not in REPEATED:
            return  # it would be a fault: a second suspension, more precopy after its end
        if name == "postcopy_transition" and "suspend" not in said:
            return
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

    def completed(self) -> bool:
        """Whether libxc's result was heard."""
        return any(event["name"] == "complete" for event in self.world.events("callback"))

    @precondition(lambda self: self.world.alive and (self.completed() or self.faults_left > 0))
    @rule(status=st.sampled_from([0, 0, 0, 3]))
    def the_helper_exits(self, status: int) -> None:
        process = self.world.alive
        assert process is not None
        if status or process.killed or not self.completed():
            self.fault()
        self.world.do(partial(process.exits, -9 if process.killed else status))

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
        guest = self.host.guest
        for _ in range(12):
            self.all_succeeds()
            if guest.asked and guest.state in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED):
                self.world.do(partial(guest.goes_to, SuspendState.SUSPENDED))
            process = self.world.alive
            if process is not None and (process.killed or process.terminated or self.completed()):
                self.the_helper_exits(0)
            elif self.hears() and not self.world.events("helper ready"):
                self.the_helper_greets()
            elif self.free_to_speak():
                self.the_helper_says("complete")
            self.world.loop.passes(0.2)

    # What must hold

    @invariant()
    def nothing_went_wrong_in_between(self) -> None:
        assert self.world.faults == []

    @invariant()
    def the_first_failure_is_kept(self) -> None:
        if not hasattr(self, "operation"):
            return
        rc = self.operation._join.rc
        assert self.first_rc in (0, rc), f"rc was {self.first_rc}, and is {rc}"
        self.first_rc = rc

    @invariant()
    def after_a_failure_nothing_is_written(self) -> None:
        assert not (self.first_rc and self.writes())

    @invariant()
    def no_wait_without_an_end(self) -> None:
        """What is begun has a limit; a helper is heard, or has one; or it is all over."""
        if hasattr(self, "task") and not self.task.done():
            assert self.world.waiting or self.world.alive or self.host.guest.asked

    @invariant()
    def the_end_is_one(self) -> None:
        if hasattr(self, "task") and self.task.done() and self.result is None:
            self.result = self.task.result()
            self.judge(self.result)

    def judge(self, result: SaveResult) -> None:
        """Once, at the end."""
        assert len(self.world.events("save_ended")) == 1
        assert len(self.world.processes) <= 1
        assert self.world.alive is None, "a process is left behind"
        assert all(channel.closed for channel in self.world.channels)
        assert self.world.waiting == [], "something is left under way"
        assert self.world.loop.descriptors() == 0
        request = self.host.guest.request
        assert request is None or request.closed
        self.judge_rc(result)
        self.judge_guest(result)
        self.judge_stream(result)

    def judge_rc(self, result: SaveResult) -> None:
        failures = self.world.events("failure")
        assert bool(result.rc) == bool(result.reason)
        if result.rc:
            assert result.rc in list(Error)
            assert self.trouble, f"rc {result.rc} out of nothing: {result.reason}"
            assert result.reason == failures[0]["reason"], "not the first reason"
        if self.first_rc:
            assert result.rc == self.first_rc

    def judge_guest(self, result: SaveResult) -> None:
        """Who knows not that a guest is suspended, or will be, does not resume it."""
        assert result.suspended or not self.host.guest.may_suspend
        if self.world.processes and not self.completed():
            assert self.world.events("logdirty_off"), "log-dirty mode was left on"

    def judge_stream(self, result: SaveResult) -> None:
        assert (result.postcopy_transitioned is PostcopyTransitioned.DONE) == (
            self.transition_done()
        )
        if self.transition_begun:
            assert result.postcopy_transitioned is not PostcopyTransitioned.NEVER
        if result.rc:
            return
        (complete,) = [e for e in self.world.events("callback") if e["name"] == "complete"]
        (ended,) = self.world.events("helper ended")
        assert (complete["retval"], ended["status"]) == (0, 0), "success of a helper that failed"
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
        end = libxl_stream.encode_record(RecordType.POSTCOPY_TRANSITION_END)
        return self.transition_begun and end in self.stream

    def teardown(self) -> None:
        """Nobody helps any more: the helper does not even die by itself, the guest and the other
        side say nothing. Whoever waits has a limit."""
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
                self.after_a_failure_nothing_is_written()
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


def faults_of(save: SaveOrders) -> dict[str, Callable[[], object]]:
    """What can go wrong now, by name: the first of each kind."""
    world, guest = save.world, save.host.guest
    found: dict[str, Callable[[], object]] = {"given up": world_does(save, save.operation.cancel)}
    for waiting in world.waiting:
        for error in (OSError(5, "Input/output error"), TimeoutError("too slow")):
            what = f"{waiting.what} fails with {type(error).__name__}"
            found[what] = world_does(save, partial(waiting.fail, error))
    for seconds in (11.0, 61.0, 121.0):
        found[f"{seconds} s pass"] = partial(world.loop.passes, seconds)
    if not world.processes:
        found["no helper can be started"] = partial(setattr, world, "cannot_start", True)
    if save.channel is not None:
        found["no answer can be written"] = partial(setattr, save.channel, "broken", True)
    if world.alive is not None:
        for status in (0, 3, -11):
            found[f"exit {status}"] = world_does(save, partial(world.alive.exits, status))
    if save.hears():
        for name, fields in MESSAGES.items():
            found[f"says {name}"] = world_does(save, partial(save.channel.says, name, fields))
        failed = {"retval": -1, "errnoval": 5}
        found["libxc fails"] = world_does(save, partial(save.channel.says, "complete", failed))
        for how in ("garbage", "hangs_up"):
            found[how] = world_does(save, getattr(save.channel, how))
    if guest.asked and guest.state in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED):
        for state in (SuspendState.REFUSED, SuspendState.CRASHED):
            found[state.value] = world_does(save, partial(guest.goes_to, state))
    return found


def world_does(save: SaveOrders, act: Callable[[], object]) -> Callable[[], object]:
    return partial(save.world.do, act)
