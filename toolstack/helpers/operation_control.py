"""Lets other shells see and steer an operation of this process (`ipc_schema.control`)."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from xen_save_helper.helper.control_socket import ControlServer
from xen_save_helper.ipc_schema.control import Identity, Role
from xen_save_helper.ipc_schema.steering import Steering
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.board import SharedBoard

_LOOK: Final = 1.0
_serials: Final = itertools.count(1)


class OperationControl:
    """Of one operation, from the constructor to `close`, on the event loop that runs it. `steering`
    has what is known of it. `ended` says why its work is not done, once that is known."""

    def __init__(
        self,
        directory: Path,
        role: Role,
        *,
        name: str,
        domid: int = -1,
        trace: Trace,
        cancel: Callable[[], object],
        too_late: Callable[[], str] = lambda: "",
        step: Callable[[], str] = lambda: "",
    ) -> None:
        """See `Steering`. Raises OSError if there can be no control socket."""
        self.ended = ""
        self._loop = asyncio.get_running_loop()
        identity = Identity(role, domid, name, os.getpid(), serial=next(_serials))
        self.board = SharedBoard()
        self.steering = Steering(
            self.board,
            identity,
            trace,
            cancel=cancel,
            too_late=too_late,
            step=step,
        )
        try:
            self._server = ControlServer(str(directory), identity, self.steering.answer)
        except BaseException:
            self.board.close()
            raise
        self._timer = self._loop.call_later(_LOOK, self._look)
        self._rest = self._loop.call_soon(self._listen)

    def close(self) -> None:
        """Tell those who wait that it is over."""
        self._timer.cancel()
        self._rest.cancel()
        self._loop.remove_reader(self._server.fileno())
        self._server.close(self.ended, leaves=lambda: False)
        self.board.close()

    def _listen(self) -> None:
        self._loop.add_reader(self._server.fileno(), self._serve)

    def _serve(self) -> None:
        self._loop.remove_reader(self._server.fileno())
        self._rest = self._loop.call_later(self._server.serve(), self._listen)

    def _look(self) -> None:
        self.steering.look()
        self._timer = self._loop.call_later(_LOOK, self._look)
