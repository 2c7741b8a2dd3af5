"""Waits, each with a limit, for what no descriptor tells."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_for(condition: Callable[[], Any], what: str, limit: float = 30.0) -> Any:
    """Poll `condition` until it is true, and return its value. Raises AssertionError, which names
    `what`, after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        begun = time.thread_time()
        if value := condition():
            return value
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        # One that costs much does not take the processor from what is waited for.
        time.sleep(max(0.005, 9 * (time.thread_time() - begun)))


def gone(pid: int) -> bool:
    """Whether a process has ended, even if nobody has asked for its status yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until_blocked(stream: socket.socket) -> None:
    """Wait until the stream takes no more, so that its writer is blocked, or about to be."""
    wait_for(lambda: not select.select([], [stream], [], 0)[1], "the stream is full")
