"""The processes of one run, which have a mark in their environment (/proc)."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.faults.environments import having

MARK: Final = "XEN_TOOLSTACK_FAULT_RUN"
"""The environment variable that all processes of a run inherit, with the run's token."""

POLL: Final = 0.02
_WATCH: Final = 0.1


def new_token() -> str:
    return secrets.token_hex(8)


@dataclass(frozen=True)
class Process:
    """`state` is the letter of proc(5), `T` for stopped."""

    pid: int
    state: str
    command: tuple[str, ...]

    @property
    def is_controller(self) -> bool:
        return "xen_save_helper.toolstack.commands.main" in self.command

    def __str__(self) -> str:
        return f"{self.pid} ({self.state}): {' '.join(self.command)}"


def marked(token: str) -> list[Process]:
    """The live processes of a run."""
    found = []
    for pid in having(f"{MARK}={token}"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()
            if state not in "ZX":
                found.append(Process(pid, state, tuple(command[:-1])))
    return found


def descriptors(pid: int) -> dict[int, str]:
    """What each descriptor of a process is; empty if it has gone."""
    found = {}
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found[int(name)] = os.readlink(f"/proc/{pid}/fd/{name}")
    return found


def settled_descriptors(pid: int, most: int, limit: float) -> dict[int, str]:
    """`descriptors` once there are no more than `most`, or after `limit` seconds: a process takes
    time to notice that the other end of a connection has gone."""
    end = time.monotonic() + limit
    while len(found := descriptors(pid)) > most and time.monotonic() < end:
        time.sleep(POLL)
    return found


def left_over(token: str, guests: Callable[[], Collection[int]], limit: float) -> list[Process]:
    """The processes of a run, other than guests, that have not ended after `limit` seconds."""
    end = time.monotonic() + limit
    while True:
        # List the guests last: one that was made in between is not a leftover.
        there = marked(token)
        known = guests()
        left = [process for process in there if process.pid not in known]
        if not left or time.monotonic() > end:
            return left
        time.sleep(POLL)


def kill(processes: Collection[Process]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


@contextlib.contextmanager
def ending_stopped_controllers(token: str, patience: float) -> Iterator[None]:
    """Kill a controller that a fault has stopped for ever, as a person would in the end: once it
    has been stopped for `patience` seconds."""
    over = threading.Event()

    def watch() -> None:
        since: dict[int, float] = {}
        while not over.wait(_WATCH):
            stopped = [one for one in marked(token) if one.is_controller and one.state == "T"]
            now = time.monotonic()
            since = {one.pid: since.get(one.pid, now) for one in stopped}
            kill([one for one in stopped if now - since[one.pid] > patience])

    # A signal that ends the run may come while the thread starts: then nobody says that it is over,
    # and the process's end does not wait for that.
    thread = threading.Thread(target=watch, name="watch for stopped controllers", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
