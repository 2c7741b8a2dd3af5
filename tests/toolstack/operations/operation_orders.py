"""What a save and a restore have in common, as a hypothesis machine: the helper, the caller, the
clock, and what must hold whatever they do. Only the edges are driven (`driven`)."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.toolstack.operations.driven import DrivenChannel, Waiting, World
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.operations.stream_operation import StreamOperation

LONG = 1000.0
"""Seconds: longer than any limit."""


class OperationOrders(RuleBasedStateMachine):
    """`ENDED` names the trace's event of the end, `TRANSFERS` is the prefix of the transfers on the
    operation's own stream, `MESSAGES` are those that a helper may send, rightly or not."""

    ENDED: ClassVar[str]
    TRANSFERS: ClassVar[str]
    MESSAGES: ClassVar[dict[str, dict[str, Any]]]
    operation: StreamOperation
    task: asyncio.Task[Any]

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.result: Any = None
        self.first_rc = 0
        self.trouble = 0
        """The number of events so far that may end it badly."""
        self.faults_left = 0
        self.given_up = True

    def start(self, make: Callable[[], StreamOperation]) -> None:
        def begin() -> None:
            self.operation = make()
            self.task = asyncio.ensure_future(self.operation.run())

        self.world.do(begin)

    # What is seen

    def transfers(self) -> list[Waiting]:
        return [w for w in self.world.waiting if w.what.startswith(self.TRANSFERS)]

    @property
    def channel(self) -> DrivenChannel | None:
        return self.world.channels[-1] if self.world.channels else None

    @property
    def waits_for(self) -> str:
        """The outstanding callback of a helper that is listened to."""
        return self.channel.waiting if self.channel is not None and self.hears() else ""

    @property
    def answers(self) -> list[tuple[str, int]]:
        return [] if self.channel is None else self.channel.answers

    def hears(self) -> bool:
        return bool(self.world.alive and self.channel is not None and self.channel.listening)

    def greeted(self) -> bool:
        return bool(self.world.events("helper_ready"))

    def free_to_speak(self) -> bool:
        return self.hears() and self.greeted() and not self.waits_for

    def said(self, name: str) -> list[dict[str, Any]]:
        """The messages of this name that were received."""
        return [event for event in self.world.events("callback") if event["name"] == name]

    def says(self, name: str, fields: dict[str, Any]) -> None:
        assert self.channel is not None
        self.world.do(partial(self.channel.says, name, fields))

    def fault(self) -> None:
        """Note that what happens now may end the operation badly."""
        self.trouble += 1
        self.faults_left -= 1

    # What happens

    @precondition(lambda self: not self.world.processes and self.faults_left > 0)
    @rule()
    def helpers_cannot_be_started(self) -> None:
        self.fault()
        self.world.cannot_start = True

    @precondition(lambda self: self.hears() and not self.greeted())
    @rule()
    def the_helper_greets(self) -> None:
        assert self.channel is not None
        self.world.do(self.channel.hello)

    @precondition(lambda self: self.hears() and self.faults_left > 0)
    @rule(data=st.data())
    def the_helper_says_anything(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.MESSAGES)))
        self.fault()
        self.says(name, self.MESSAGES[name])

    @precondition(lambda self: self.free_to_speak() and self.faults_left > 0)
    @rule()
    def libxc_fails(self) -> None:
        self.fault()
        self.says("complete", {"retval": -1, "errnoval": 5})

    @precondition(lambda self: self.hears() and self.faults_left > 0)
    @rule(how=st.sampled_from(["garbage", "hangs_up"]))
    def the_channel_fails(self, how: str) -> None:
        self.fault()
        self.world.do(getattr(self.channel, how))

    @precondition(lambda self: self.channel is not None and self.faults_left > 0)
    @rule()
    def no_answer_can_be_written(self) -> None:
        assert self.channel is not None
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
        """A moment is longer than a dying process keeps its connection, and shorter than any
        limit."""
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

    def the_helper_goes_on(self) -> None:
        """Have the helper go on as well as it still can."""
        process = self.world.alive
        if process is not None and (process.killed or process.terminated or self.said("complete")):
            self.the_helper_exits(0)
        elif self.hears() and not self.greeted():
            self.the_helper_greets()

    def faults_now(self) -> dict[str, Callable[[], object]]:
        """The faults that can happen now, by name."""
        world, channel = self.world, self.channel

        def does(act: Callable[[], object]) -> Callable[[], object]:
            return partial(world.do, act)

        found: dict[str, Callable[[], object]] = {"given up": does(self.operation.cancel)}
        for waiting in world.waiting:
            for error in (OSError(5, "Input/output error"), TimeoutError("too slow")):
                what = f"{waiting.what} fails with {type(error).__name__}"
                found[what] = does(partial(waiting.fail, error))
        for seconds in (11.0, 61.0, 121.0):
            found[f"{seconds} s pass"] = partial(world.loop.passes, seconds)
        if not world.processes:
            found["no helper can be started"] = partial(setattr, world, "cannot_start", True)
        if channel is not None:
            found["no answer can be written"] = partial(setattr, channel, "broken", True)
        if world.alive is not None:
            for status in (0, 3, -11):
                found[f"exit {status}"] = does(partial(world.alive.exits, status))
        if channel is not None and self.hears():
            for name, fields in self.MESSAGES.items():
                found[f"says {name}"] = partial(self.says, name, fields)
            found["libxc fails"] = partial(self.says, "complete", {"retval": -1, "errnoval": 5})
            found["garbage"] = does(channel.garbage)
            found["hangs up"] = does(channel.hangs_up)
        return found

    def one_fault(self, name: str) -> None:
        """Have this one of `faults_now` happen; then all goes on as well as it can, to the end."""
        self.trouble += 1
        self.faults_now()[name]()
        self.nothing_went_wrong_in_between()
        self.the_first_failure_is_kept()
        self.after_a_failure_nothing_is_transferred()
        self.given_up = False
        self.teardown()

    @abstractmethod
    def all_goes_on(self) -> None:
        """Have all go on as well as it still can, to the end."""

    @abstractmethod
    def transition_done(self) -> bool:
        """Whether the postcopy transition was made, and the helper told so."""

    @abstractmethod
    def judge(self) -> None:
        """Check the `result`, once, at the end."""

    # What must hold

    @invariant()
    def nothing_went_wrong_in_between(self) -> None:
        assert self.world.faults == [], self.world.faults

    @invariant()
    def the_first_failure_is_kept(self) -> None:
        if not hasattr(self, "operation"):
            return
        rc = self.operation._join.rc
        assert self.first_rc in (0, rc), f"rc was {self.first_rc}, and is {rc}"
        self.first_rc = rc

    @invariant()
    def after_a_failure_nothing_is_transferred(self) -> None:
        assert not (self.first_rc and self.transfers())

    @invariant()
    def the_end_is_one(self) -> None:
        if hasattr(self, "task") and self.task.done() and self.result is None:
            self.result = self.task.result()
            self.judge_what_is_left()
            self.judge_answer()
            self.judge_rc()
            self.judge()

    def judge_what_is_left(self) -> None:
        assert len(self.world.events(self.ENDED)) == 1
        assert len(self.world.processes) <= 1
        assert self.world.alive is None, "a process is left behind"
        assert all(channel.closed for channel in self.world.channels)
        assert self.world.waiting == [], "something is left in progress"
        assert self.world.loop.descriptors() == 0

    def judge_answer(self) -> None:
        """libxc is not told that a failed transition was made."""
        if any(event["rc"] for event in self.world.events("postcopy_transition_done")):
            assert ("postcopy_transition", 1) not in self.answers

    def judge_rc(self) -> None:
        failures, result = self.world.events("failure"), self.result
        assert bool(result.rc) == bool(result.reason)
        if result.rc:
            assert result.rc in list(Error)
            assert self.trouble, f"rc {result.rc} out of nothing: {result.reason}"
            assert result.reason == failures[0]["reason"], "not the first reason"
        else:
            (complete,) = self.said("complete")
            assert complete["retval"] == 0, "the helper had failed"
            (ended,) = self.world.events("helper_exited")
            # Past the transition, all is there once `complete` has been received.
            assert ended["status"] == 0 or self.transition_done(), "the helper had failed"
        if self.first_rc:
            assert result.rc == self.first_rc

    def teardown(self) -> None:
        """From here on nobody helps: the helper does not even die by itself, and the other side
        sends nothing. Every wait has a limit, except for a call that lets a guest run which would
        be lost otherwise; that call returns."""
        try:
            if hasattr(self, "task"):
                if not self.given_up:
                    self.all_goes_on()
                self.every_callback_is_answered_in_time()
                self.world.do(self.operation.cancel)
                for _ in range(12):
                    for waiting in self.world.waiting.copy():
                        if waiting.without_limit:
                            self.world.do(waiting.succeed)
                    process = self.world.alive
                    if process is not None and process.killed:
                        self.world.do(partial(process.exits, -9))
                    self.trouble += 1
                    self.world.loop.passes(LONG)
                assert self.task.done(), "it does not end"
                self.nothing_went_wrong_in_between()
                self.the_first_failure_is_kept()
                self.after_a_failure_nothing_is_transferred()
                self.the_end_is_one()
                self.nothing_is_done_after_the_end()
        finally:
            self.world.close()

    def every_callback_is_answered_in_time(self) -> None:
        """Even if nobody gives up, a helper that waits for an answer gets one, or is ended."""
        process = self.world.alive
        if process is not None and self.waits_for:
            self.trouble += 1
            for _ in range(2):  # what begins when a limit has passed has a limit of its own
                self.world.loop.passes(LONG)
            assert not self.waits_for or process.terminated or process.killed

    def nothing_is_done_after_the_end(self) -> None:
        events = len(self.world.trace)
        self.world.do(self.operation.cancel)
        self.world.loop.passes(LONG)
        assert self.world.waiting == []
        assert len(self.world.trace) == events
