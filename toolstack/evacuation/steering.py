"""Changes the bandwidth of migrations that this process carries out, as another shell would."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from xen_save_helper.ipc_schema.control import Ask, Role
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError

_TRIES: Final = 50
_PAUSE_SECONDS: Final = 0.2


class Bandwidths:
    """`run.Steer`, for the control sockets in `directory`. A migration that has only just begun is
    waited for; one that has ended needs none."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wanted: dict[str, int] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __call__(self, guest: str, bandwidth: int) -> None:
        """From the event loop, on which the sockets answer."""
        if self._wanted.get(guest) == bandwidth:
            return
        self._wanted[guest] = bandwidth
        if guest not in self._tasks:
            self._tasks[guest] = spawn(self._steer(guest))

    async def _steer(self, guest: str) -> None:
        try:
            for _ in range(_TRIES):
                wanted = self._wanted[guest]
                told = await asyncio.to_thread(self._set, guest, wanted)
                if told and self._wanted[guest] == wanted:
                    return
                await asyncio.sleep(0 if told else _PAUSE_SECONDS)
        finally:
            del self._tasks[guest]

    def _set(self, guest: str, bandwidth: int) -> bool:
        """Whether there was a migration to set it for."""
        for operation in control.operations(self._directory):
            ours = (operation.role, operation.domain, operation.pid)
            if ours == (Role.MIGRATE, guest, os.getpid()):
                with suppress(OSError, EndedError):  # it has ended, or is about to
                    control.ask(self._directory, operation, Ask.SET, bandwidth=bandwidth)
                return True
        return False
