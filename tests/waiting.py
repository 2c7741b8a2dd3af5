"""How tests wait for what no descriptor tells: each time with a limit, and a word for what."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil


def wait_for(condition: Callable[[], Any], what: str, limit: float = 30.0) -> Any:
    """Poll `condition` until it is true, and return what it gave; AssertionError that names `what`
    after `limit` seconds."""
    end = time.monotonic() + limit
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {limit} s: {what}"
        time.sleep(0.002)
    return value


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def until_blocked(stream: socket.socket) -> None:
    """Wait until the stream takes no more: its writer is blocked, or about to be."""
    wait_for(lambda: not select.select([], [stream], [], 0)[1], "the stream is full")
