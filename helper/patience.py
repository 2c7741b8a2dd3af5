"""Limits of waits in a thread, in time in which this process ran (`ipc_schema.channel.waits`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from xen_save_helper.ipc_schema.channel.waits import Patience

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
