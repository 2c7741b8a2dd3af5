"""Processes of ours that were stopped: seen, told of when they go on, and let go on.

Nothing is given up because a process stood still: what of its time counts,
`ipc_schema.channel.waits` says. Here is what a person hears of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Final, Protocol

from xen_save_helper.ipc_schema.channel.waits import LOOK, is_stopped, stood_still
from xen_save_helper.ipc_schema.trace import Trace


class Listener(Protocol):
    """What is asked of an operation's `Context`."""

    @property
    def trace(self) -> Trace: ...

    def warn(self, text: str) -> None: ...


def family(pid: int) -> Iterator[int]:
    """`pid` and its descendants; a program may have been started by a script of its name."""
    yield pid
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                children = file.read().split()
            for child in children:
                yield from family(int(child))
    except OSError:
        return  # it has ended


def stands_still(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process; one that has gone does not stand."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return is_stopped(file.read())
    except OSError:
        return False


def session_stands_still(leader: int) -> bool:
    """Whether a process of the session that a child of ours leads is stopped. A session below has
    its own watch."""
    for pid in family(leader):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and stands_still(pid):
                return True
    return False


def let_go_on(leader: int) -> None:
    """SIGCONT, to the group that a child of ours leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGCONT)


class ChildWatch:
    """Looks whether a child of ours, which leads a session, is stopped. After `limit` seconds it is
    let go on: somebody on another machine may wait for it, who cannot see why it is silent. `told`
    hears for how long it stood still, where that is worth a word. Needs a running asyncio loop."""

    def __init__(self, leader: int, limit: float, told: Callable[[float], object]) -> None:
        self._leader = leader
        self._limit = limit
        self._told = told
        self._step = min(LOOK, limit / 4)
        self._still = 0.0
        self._loop = asyncio.get_running_loop()
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._step, self._look)

    def cancel(self) -> None:
        """It has ended, and its number may be another's."""
        self._timer.cancel()
        self._goes_on()

    def _look(self) -> None:
        now = self._loop.time()
        passed = min(now - self._looked, 2 * self._step)
        self._looked = now
        self._timer = self._loop.call_later(self._step, self._look)
        if session_stands_still(self._leader):
            self._still += passed
            if self._still < self._limit:
                return
            let_go_on(self._leader)
        self._goes_on()

    def _goes_on(self) -> None:
        seconds, self._still = self._still, 0.0
        if stood_still(0, seconds):
            self._told(seconds)


class Stops:
    """What an operation's processes have stood still, in seconds, altogether."""

    def __init__(self) -> None:
        self.seconds = 0.0


_stops: ContextVar[Stops | None] = ContextVar("stops", default=None)


def tell(ctx: Listener, who: str, seconds: float) -> None:
    """`who`, a process of ours, stood still: to the trace, the log, and the operation's result."""
    ctx.trace.event("stood_still", who=who, seconds=round(seconds, 3))
    ctx.warn(f"{who} stood still for {seconds:.0f} s")
    if (stops := _stops.get()) is not None:
        stops.seconds += seconds


CONTROLLER: Final = "this process"
HELPER: Final = "the save helper"
RECEIVER: Final = "the receiver"


@contextlib.contextmanager
def telling(ctx: Listener) -> Iterator[Stops]:
    """While it is entered, each stop of this process is told; what is told within is summed up. One
    within another is the other. Needs a running asyncio loop."""
    outer = _stops.get()
    if outer is not None:
        yield outer
        return
    stops, over, loop = Stops(), threading.Event(), asyncio.get_running_loop()
    token = _stops.set(stops)
    here = copy_context()

    def watch() -> None:
        # In a thread: a loop that is busy does not stand still.
        looked = time.monotonic()
        while not over.wait(LOOK):
            now = time.monotonic()
            if seconds := stood_still(LOOK, now - looked):
                loop.call_soon_threadsafe(tell, ctx, CONTROLLER, seconds, context=here)
            looked = now

    thread = threading.Thread(target=watch, name="watch for stops", daemon=True)
    thread.start()
    try:
        yield stops
    finally:
        over.set()
        thread.join()
        _stops.reset(token)
