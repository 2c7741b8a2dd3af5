"""The control socket of a save or restore that libxl has started: nobody else is there to answer
for it (`ipc_schema.control`).

It serves in a thread, which begins a moment after the helper: one whose work is done by then has
not waited for the modules that this takes.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Mapping

from xen_save_helper.helper.abort import Abort
from xen_save_helper.ipc_schema.board import Board
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags, XentoollogLevel
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Any, Final
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.control_socket import ControlSocket
    from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
    from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyRounds
    from xen_save_helper.ipc_schema.control import Ask
    from xen_save_helper.ipc_schema.steering import Steering

_AFTER: Final = 0.2
"""Seconds from the helper's start; nobody asks sooner."""

_TRANSITION: Final = "past the postcopy transition: the guest may run at the destination"
_WHOLE: Final = "all of the guest is in the stream: its controller decides what becomes of it"
_RESTORED: Final = "all of the guest is here: its controller decides what becomes of it"
_TOO_LATE: Final[Mapping[str, str]] = {
    Phase.POSTCOPY_TRANSITION.value: _TRANSITION,
    Phase.POSTCOPY_PAGES.value: _TRANSITION,
    Phase.POSTCOPY_DRAIN.value: _TRANSITION,
    Phase.END.value: _WHOLE,
    Phase.FINISHED.value: _WHOLE,
    Stage.ENDED.value: _RESTORED,
}


class OperationControl:
    """From the constructor, in the main thread, to `close`. `rounds` are those of a live save, once
    its policy is made; `ended` says why the work is not done, if it has failed."""

    def __init__(
        self,
        request: HelperRequest,
        directory: str,
        board: Board,
        abort: Abort,
        trace: Trace,
        remark: Callable[[XentoollogLevel, str], object],
        *,
        by_link: bool,
    ) -> None:
        """`remark` logs a line, from any thread; `by_link` is `Steering`'s."""
        self.rounds: PrecopyRounds | None = None
        self.ended = ""
        self._request = request
        self._directory = directory
        self._by_link = by_link
        self._board = board
        self._abort = abort
        self._trace = trace
        self._remark = remark
        self._steering: Steering | None = None
        self._socket: ControlSocket | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._begin, name="control", daemon=True)
        self._thread.start()

    def sending_clock(self) -> float:
        """As `Steering.sending_clock`."""
        return self._board.sending_clock(time.monotonic())

    def close(self) -> None:
        """Tell those who wait that it is over, and how it has `ended`."""
        self._over.set()
        self._thread.join()
        if self._socket is not None:
            self._socket.close(self.ended, leaves=lambda: False)
            self._socket = None

    def _begin(self) -> None:
        if self._over.wait(_AFTER):
            return
        from xen_save_helper.helper.control_socket import ControlSocket
        from xen_save_helper.helper.hypervisors import glance
        from xen_save_helper.ipc_schema.control import Identity, Role
        from xen_save_helper.ipc_schema.control_directory import directory_of
        from xen_save_helper.ipc_schema.steering import Steering

        request = self._request
        saves = request.operation is Operation.SAVE
        identity = Identity(
            Role.HELPER_SAVE if saves else Role.HELPER_RESTORE,
            request.domid,
            glance.name(request.hypervisor, request.domid),
            os.getpid(),
        )
        self._steering = steering = Steering(
            self._board,
            identity,
            self._trace,
            cancel=lambda: self._abort.request(errno.ECANCELED, "it was cancelled"),
            too_late=lambda: _TOO_LATE.get(self._board.phase, ""),
            steered=self._steered,
        )
        steering.live = bool(request.xcflags & XCFlags.LIVE)
        steering.by_link = self._by_link
        steering.no_rounds = "a guest that is saved while it stands still has no precopy"
        if steering.live:
            steering.no_rounds = "its stream has not begun, or libxl decides about precopy"
        directory = directory_of(request.hypervisor, self._directory)
        try:
            self._socket = ControlSocket(directory, identity, self._answer, steering.look)
        except OSError as error:
            self._trace.event("no_control", directory=directory, error=str(error))
            self._remark(XentoollogLevel.DEBUG, f"nobody can see or steer this: {error}"[:200])

    # In the socket's thread.

    def _answer(self, ask: Ask, request: Mapping[str, Any]) -> Mapping[str, Any]:
        assert self._steering is not None
        self._steering.rounds = self.rounds
        return self._steering.answer(ask, request)

    def _steered(self, ask: Ask, fields: Mapping[str, object]) -> None:
        said = " ".join(f"{name}={value}" for name, value in fields.items())
        self._remark(XentoollogLevel.INFO, f"asked from another shell: {ask.value} {said}"[:200])
