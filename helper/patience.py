"""Waits with a limit in a thread; only time in which this process ran counts
(`ipc_schema.channel.waits`), and in which the other process was not stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from xen_save_helper.ipc_schema.channel.waits import Patience, is_stopped
from xen_save_helper.ipc_schema.hints import Final, Protocol

_PARENT: Final = os.getppid()

Ready = list[tuple[int, int]]


class Poll(Protocol):
    """`select.poll`."""

    def poll(self, timeout: float | None = None, /) -> Ready: ...


def poll_milliseconds(seconds: float) -> float:
    """A timeout for `poll`: whole milliseconds, rounded up so that a wait never becomes a spin."""
    return -(-seconds * 1000 // 1) if seconds > 0 else 0


def poll_patiently(
    poll: Poll,
    limit: float,
    *,
    look: Callable[[], object] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Ready:
    """Like `poll.poll`, for at most `limit` seconds (0: for ever), not counting time in which this
    process did not run, or in which `stopped` said that the other one was stopped. `look` is called
    now and then."""
    patience = Patience(limit, time.monotonic())
    while not (ready := poll.poll(poll_milliseconds(patience.wait))):
        look()
        if limit and patience.look(time.monotonic(), counts=not stopped()):
            break
    return ready


def controller_stands_still() -> bool:
    """Whether the toolstack that started us is stopped: it is not dead, and will do what it owes us
    once it continues. Ask only if a limit depends on it: the bytes that are read here look like
    work to whoever watches us."""
    try:
        with open(f"/proc/{_PARENT}/stat", "rb") as file:
            return is_stopped(file.read())
    except OSError:
        return False  # it is dead
