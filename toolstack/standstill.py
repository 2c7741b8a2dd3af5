"""Watches for processes of ours that are stopped: reports and continues them.

Nothing is given up because a process stood still: `ipc_schema.channel.waits` says which time counts
for a limit. This module tells people about it.
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
    """The part of a `Context` that is needed here."""

    @property
    def trace(self) -> Trace: ...

    def warn(self, text: str) -> None: ...


def family(pid: int) -> Iterator[int]:
    """`pid` and its descendants: a script may have started the program."""
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
    """Whether a signal or a debugger has stopped a process; False if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return is_stopped(file.read())
    except OSError:
        return False


def session_stands_still(leader: int) -> bool:
    """Whether a process is stopped in the session that a child of ours leads. A session below that
    has a watch of its own."""
    for pid in family(leader):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(pid) == leader and stands_still(pid):
                return True
    return False


def let_go_on(leader: int) -> None:
    """Send SIGCONT to the process group that a child of ours leads."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGCONT)


class ChildWatch:
    """Watches a child of ours that leads a session. If it is stopped for `limit` seconds, it is
    continued: somebody on another machine may wait for it, and cannot see why it is silent. `told`
    is called with the seconds of a stop that is worth mentioning. Needs a running asyncio loop."""

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
        """Stop watching: it has ended, and its pid may be reused."""
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
    """The total time for which an operation's processes stood still, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0


_stops: ContextVar[Stops | None] = ContextVar("stops", default=None)


def tell(ctx: Listener, who: str, seconds: float) -> None:
    """Report to the trace, the log and the operation's result that `who`, a process of ours, stood
    still."""
    ctx.trace.event("stood_still", who=who, seconds=round(seconds, 3))
    ctx.warn(f"{who} stood still for {seconds:.0f} s")
    if (stops := _stops.get()) is not None:
        stops.seconds += seconds


CONTROLLER: Final = "this process"
HELPER: Final = "the save helper"
RECEIVER: Final = "the receiver"


@contextlib.contextmanager
def telling(ctx: Listener) -> Iterator[Stops]:
    """Report each stop of this process while the context lasts, and sum up all that are reported.
    An inner context is the outer one. Needs a running asyncio loop."""
    outer = _stops.get()
    if outer is not None:
        yield outer
        return
    stops, over, loop = Stops(), threading.Event(), asyncio.get_running_loop()
    token = _stops.set(stops)
    here = copy_context()

    def watch() -> None:
        # In a thread: a busy loop does not count as standing still.
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
