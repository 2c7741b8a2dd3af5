"""Limits of waits in a thread, in time in which this process ran (`ipc_schema.channel.waits`), and
in which whoever is waited for was not stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Final, Protocol

from xen_save_helper.ipc_schema.channel.waits import Patience, is_stopped

_PARENT: Final = os.getppid()

Ready = list[tuple[int, int]]


class Poll(Protocol):
    """`select.poll`."""

    def poll(self, timeout: float | None = None, /) -> Ready: ...


def poll_milliseconds(seconds: float) -> float:
    """A timeout for `poll`: whole milliseconds, rounded up so that no wait turns into a spin."""
    return -(-seconds * 1000 // 1) if seconds > 0 else 0


def poll_patiently(
    poll: Poll,
    limit: float,
    *,
    look: Callable[[], object] = lambda: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Ready:
    """As `poll.poll`, for at most `limit` seconds (0: ever) in which this process ran, and in which
    `stopped` did not say that whoever is waited for stands still himself. `look` is called now and
    then."""
    patience = Patience(limit, time.monotonic())
    while not (ready := poll.poll(poll_milliseconds(patience.wait))):
        look()
        if limit and patience.look(time.monotonic(), counts=not stopped()):
            break
    return ready


def controller_stands_still() -> bool:
    """Whether the process that has started us, a toolstack, is stopped: it is not dead, and what it
    owes us it owes when it goes on. Not to be asked where no limit hangs on it: the octets that are
    read here look like work to whoever watches us."""
    try:
        with open(f"/proc/{_PARENT}/stat", "rb") as file:
            return is_stopped(file.read())
    except OSError:
        return False  # it has gone
