"""Carries out the actions of a handshake to its end; common parts of sender and receiver."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping, Set
from typing import Any, Generic, ParamSpec, TypeVar

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why, why
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.context import OURS, Context
from xen_save_helper.toolstack.rules.cause import Failure, Failures, message_of
from xen_save_helper.toolstack.rules.handshake import Event, Handshake, State
from xen_save_helper.toolstack.xl.link import HandshakeLink

_P = ParamSpec("_P")
_T = TypeVar("_T")

Action = Callable[[], Coroutine[Any, Any, Event]]


async def run_handshake(
    machine: Handshake[State],
    actions: Mapping[State, Action],
    *,
    gives_up: Callable[[State], bool],
    failed: Callable[[Failure], None],
    trace: Trace,
) -> None:
    """Step `machine` to its end. `failed` is called for each action that raises OSError, EOFError
    or ValueError (a failure of the other side or of the host), and for an abort.

    A cancellation cancels the running action if its state `gives_up`; the machine then goes on as
    after any failure. In other states it has no effect: all actions have limits. One that comes as
    an action ends goes to the next action.
    """
    abort = False
    while not machine.ended:
        state = machine.state
        trace.event("handshake", action=state.value)
        task = spawn(actions[state]())
        begun = False
        while not task.done():
            # Only an action that has begun can say what it means that it was cancelled.
            if abort and begun:
                abort, followed = False, gives_up(state)
                trace.event("abort", action=state.value, followed=followed)
                if followed:
                    failed(Failure(Error.ABORTED, "interrupted", Why(Cause.ABORTED)))
                    task.cancel()
            try:
                await (asyncio.wait([task]) if begun else asyncio.sleep(0))
            except asyncio.CancelledError:
                abort = True
            begun = True
        event = _event_of(task, failed)
        if event is not Event.OK:
            trace.event("handshake", action=state.value, result=event.value)
        machine.step(event)


def _event_of(task: asyncio.Future[Event], failed: Callable[[Failure], None]) -> Event:
    try:
        return task.result()
    except asyncio.CancelledError:
        return Event.FAILED
    except (OSError, EOFError, ValueError) as error:
        failed(Failure(Error.FAIL, message_of(error), why(error)))
        return Event.FAILED


class HandshakeSide(ABC, Generic[State]):
    """The sender or the receiver. `past_return` is what it tells a person who interrupts it in the
    state `streaming` when only the destination may have the guest's newest state."""

    past_return: str
    streaming: State
    interruptible: Set[State]
    """The states in which an interruption has an effect."""

    def __init__(self, ctx: Context, machine: Handshake[State]) -> None:
        self._ctx = ctx
        self._machine = machine
        self._failures = Failures()
        self._beyond = False
        """Only the destination may have the guest's newest state."""
        self._warned = False

    @property
    @abstractmethod
    def _actions(self) -> Mapping[State, Action]:
        """The action of each state."""

    @property
    @abstractmethod
    def _link(self) -> HandshakeLink:
        """The link to the other side."""

    async def _run_handshake(self) -> None:
        await run_handshake(
            self._machine,
            self._actions,
            gives_up=self._gives_up,
            failed=self._failures.met,
            trace=self._ctx.trace,
        )

    def _gives_up(self, state: State) -> bool:
        if self._beyond and state is self.streaming and not self._warned:
            self._warned = True
            self._ctx.warn(
                f"{self.past_return}, so the migration goes on; interrupt it again to stop it "
                "all the same"
            )
            return False
        return state in self.interruptible

    def _why_too_late(self) -> str:
        """Why the migration cannot be cancelled any more; "" if it can."""
        if self._beyond:
            return self.past_return
        state = self._machine.state
        if state not in self.interruptible:
            return f"it is too late: it goes on to {state.value}"
        return ""

    def _fail(self, rc: int, reason: str, why: Why = SYSTEM) -> None:
        self._failures.met(Failure(rc, reason, why))

    @property
    def _cause(self) -> dict[str, object]:
        """The fields of the last event that tell the cause; none of a success."""
        cause = self._failures.cause
        return {} if cause is None or not cause.rc else cause.why._asdict()

    def _reason(self) -> str:
        """The reason of the cause. Its consequences go to the trace and the verbose log."""
        for consequence in self._failures.consequences:
            self._ctx.trace.event("consequence", reason=consequence)
            self._ctx.say(XentoollogLevel.NOTICE, OURS, f"after that: {consequence}")
        return self._failures.reason

    @staticmethod
    async def _aside(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Make a call of the host beside the loop, in which other migrations may be at work, and
        where the control socket answers."""
        return await blocking.call(0, call, *args, **kwargs)

    async def _say(self, message: HandshakeMessage) -> Event:
        await self._link.say(message)
        return Event.OK

    async def _hear(self, message: HandshakeMessage) -> Event:
        await self._link.hear(message)
        return Event.OK
