"""Carry out the actions of a handshake, one after another, until it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.rules.cause import Failure, message_of
from xen_save_helper.toolstack.rules.handshake import Event, Handshake, State
from xen_save_helper.toolstack.xl.link import LinkClosedError

Action = Callable[[], Coroutine[Any, Any, Event]]


async def run_handshake(
    machine: Handshake[State],
    actions: Mapping[State, Action],
    *,
    gives_up: Callable[[State], bool],
    failed: Callable[[Failure], None],
    trace: Trace,
) -> None:
    """Step `machine` to its end. `failed` hears of each action that raised OSError, EOFError or
    ValueError (a failure of the other side or of the host), and of an abort.

    A cancellation cancels the action that runs, if its state `gives_up`; the machine then goes on
    to what follows from that failure. Elsewhere it is put off for ever: all actions have limits.
    One that comes in the moment in which an action ends is the next one's.
    """
    abort = False
    while not machine.ended:
        state = machine.state
        trace.event("handshake", action=state.value)
        task = spawn(actions[state]())
        while not task.done():
            if abort:
                abort, followed = False, gives_up(state)
                trace.event("abort", action=state.value, followed=followed)
                if followed:
                    failed(Failure(Error.ABORTED, "interrupted"))
                    task.cancel()
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                abort = True
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
        theirs = isinstance(error, LinkClosedError)
        failed(Failure(Error.FAIL, message_of(error), theirs))
        return Event.FAILED
