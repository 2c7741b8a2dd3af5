"""A suspend request in progress (what libxl writes to control/shutdown).

The request is a number in the domain page. It is pending until the guest acknowledges it or it is
withdrawn; either happens under the suspend lock, as in a xenstore transaction.
"""

from __future__ import annotations

import os
import socket

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.simulated import control
from xen_save_helper.helper.hypervisors.simulated.domain_files import suspend_lock
from xen_save_helper.helper.hypervisors.simulated.open_domain import OpenDomain
from xen_save_helper.helper.hypervisors.simulated.shared import GuestGoneError
from xen_save_helper.toolstack.hosts.interface import SuspendState


class SimulatedSuspendRequest:
    """interface.SuspendRequest. Its descriptor is a connection on which the guest reports that it
    has suspended; if the connection ends, the guest has crashed."""

    def __init__(self, domain: OpenDomain, directory: int, timeout: float) -> None:
        """Make the request. It takes over `domain` and `directory` (a descriptor)."""
        self._domain = domain
        self._directory = directory
        self._timeout = timeout
        self._number = 0
        self._connection: socket.socket | None = None
        try:
            self._connection = self._request()
        except (GuestGoneError, BrokenPipeError, ConnectionResetError):
            # The guest is dead: a descriptor at end of file and `state` will show that.
            self._connection, other = socket.socketpair()
            other.close()
        except BaseException:
            self.close()
            raise
        self._connection.setblocking(False)

    def _request(self) -> socket.socket:
        connection = control.connect(self._directory, self._timeout)
        try:
            page = self._domain.shared.domain
            with suspend_lock(self._directory, self._timeout):
                page.suspend_count += 1
                self._number = page.suspend_count
                page.suspend_wanted = self._number
            control.send(connection, {"do": "suspend"})
        except BaseException:
            connection.close()
            raise
        return connection

    def fileno(self) -> int:
        return -1 if self._connection is None else self._connection.fileno()

    def state(self) -> SuspendState:
        self._drain()
        if not self._domain.alive():
            return SuspendState.CRASHED
        page = self._domain.shared.domain
        if page.shutdown == ShutdownReason.CRASH:
            return SuspendState.CRASHED
        # In this order: the guest acknowledges a request before it clears it.
        wanted = page.suspend_wanted == self._number
        if page.suspend_acknowledged == self._number:
            suspended = page.shutdown == ShutdownReason.SUSPEND
            return SuspendState.SUSPENDED if suspended else SuspendState.ACKNOWLEDGED
        return SuspendState.REQUESTED if wanted else SuspendState.REFUSED

    def _drain(self) -> None:
        """Read what the guest sent, so that the descriptor is readable at the next change only."""
        if self._connection is None:
            return
        while True:
            try:
                message, _ = control.receive(self._connection)
            except (BlockingIOError, ConnectionResetError):
                return
            if message is None:
                return

    def withdraw(self) -> bool:
        if not self._domain.alive():
            return True
        page = self._domain.shared.domain
        with suspend_lock(self._directory, self._timeout):
            if page.suspend_acknowledged == self._number:
                return False
            if page.suspend_wanted == self._number:
                page.suspend_wanted = 0
            return True

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1
            self._domain.close()
