"""What a person sees of page servers and pagers, and does about them while a migration waits."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from xen_save_helper.ipc_schema.control import Identity, Role, lives
from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.campaign.evidence import Outliving
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.standstill import stands_still

_LOOK: Final = 0.1
LONE_SECONDS: Final = 4.0
"""So long after the death of one the other one has seen to what it can."""


def outliving(directory: Path, process: Identity) -> Outliving:
    """What its host knows of it."""
    left: int | None = None
    with contextlib.suppress(EndedError, OSError):
        left = control.status(directory, process).pages_left
    return Outliving(process.role.value, lives(process.pid), left)


class LonePids:
    """The pids of page servers and pagers whose other side has been dead for some time."""

    def __init__(self, hosts: Mapping[Side, SimulatedHost]) -> None:
        self._hosts = hosts
        self._since: dict[int, float] = {}

    def of(self, side: Side) -> bool:
        """Whether there is one at a side."""
        there = {one.pid for one in control.processes(self._hosts[side].control_dir)}
        return bool(there & self.found())

    def found(self) -> set[int]:
        alive = {
            side: [one for one in control.processes(host.control_dir) if lives(one.pid)]
            for side, host in self._hosts.items()
        }
        lone = [] if all(alive.values()) else [one for side in alive for one in alive[side]]
        now = time.monotonic()
        self._since = {one.pid: self._since.get(one.pid, now) for one in lone}
        return {
            one.pid
            for side, host in self._hosts.items()
            for one in alive[side]
            if now - self._since.get(one.pid, now) > LONE_SECONDS and not _ends_by_itself(host, one)
        }


def _ends_by_itself(host: SimulatedHost, process: Identity) -> bool:
    """A pager that lacks nothing does, and a page server whose guest runs here again. One that has
    sent all waits to be told that it has come."""
    if process.role is Role.PAGER:
        return outliving(host.control_dir, process).left == 0
    states = {row.domid: row.state for row in host.domains()}
    return states.get(process.domid) is GuestState.RUNNING


class Onlooker:
    """A person who has patience for so many seconds with what does not go on by itself: kills a
    page server or a pager that is stopped for ever, and calls `abandon` if the pager is dead and
    its page server waits for another one. As a context."""

    def __init__(
        self, source: Path, destination: Path, patience: float, abandon: Callable[[], None]
    ) -> None:
        self._source = source
        self._destination = destination
        self._patience = patience
        self._abandon = abandon
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="onlooker", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        since: dict[int, float] = {}
        # One that is stopped when it is about to exit has removed its files.
        known: dict[int, Identity] = {}
        while not self._over.wait(_LOOK):
            servers, pagers = (
                control.processes(directory) for directory in (self._source, self._destination)
            )
            known.update((one.pid, one) for one in (*servers, *pagers))
            wrong = [one for one in known.values() if stands_still(one.pid)]
            dead = [one for one in pagers if not lives(one.pid)]
            waiting = [one for one in servers if lives(one.pid)]
            if dead and waiting:
                wrong += dead
            now = time.monotonic()
            since = {one.pid: since.get(one.pid, now) for one in wrong}
            late = [one for one in wrong if now - since[one.pid] > self._patience]
            for one in late:
                if lives(one.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(one.pid, signal.SIGKILL)
            if any(one in pagers and not lives(one.pid) for one in late):
                self._abandon()
                return
