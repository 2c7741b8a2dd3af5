"""The main loop of a guest's process: its vCPU's steps, and between them requests on its socket."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import numpy as np

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.simulated import control, device_model, layout, userfault
from xen_save_helper.helper.hypervisors.simulated.build import (
    add_special_pages,
    build_domain,
    fresh_registers,
)
from xen_save_helper.helper.hypervisors.simulated.config import capacity_for
from xen_save_helper.helper.hypervisors.simulated.control import Message
from xen_save_helper.helper.hypervisors.simulated.domain_files import (
    lacks_around,
    read_config,
    try_suspend_lock,
)
from xen_save_helper.helper.hypervisors.simulated.layout import PAGE_SIZE, RUNS, Behaviour
from xen_save_helper.helper.hypervisors.simulated.registers import ForeignContextError, Registers
from xen_save_helper.helper.hypervisors.simulated.shared import (
    SharedMemory,
    create_areas,
    write_process_file,
)
from xen_save_helper.helper.hypervisors.simulated.vcpu import FILL, VCPU, Crash

_LOOK_AFTER: Final = 1.0
"""Seconds between two checks that the domain's directory still exists."""


class GuestLoop:
    """A domain's process. `directory` is a descriptor of the domain's directory."""

    def __init__(self, directory: int, domid: int) -> None:
        self._directory = directory
        config = read_config(directory)
        capacity = capacity_for(config)
        fds = create_areas(capacity)
        # Other processes open these by number, so they stay open.
        kept = {name: os.dup(fd) for name, fd in fds.items()}
        self._shared = SharedMemory(fds)
        self._domain = self._shared.domain
        build_domain(self._shared, domid, config, capacity, lacks_around(directory))
        self._vcpu = VCPU(self._shared)
        self._listener = control.listen(directory)
        self._poller = select.poll()
        self._poller.register(self._listener, select.POLLIN)
        self._connections: dict[int, socket.socket] = {}
        self._watchers: set[int] = set()
        self._pager: int | None = None
        self._suspend_noticed: tuple[int, float] = (0, 0.0)
        self._next_look = 0.0
        self._device_unproven = False
        self._requests: dict[str, Callable[[socket.socket, Message], Message | None]] = {
            "pause": self._pause,
            "unpause": self._unpause,
            "suspend": self._watch_suspend,
            "resume": self._resume,
            "build": self._build,
            "verify": self._verify,
            "paging": self._start_paging,
            "balloon": self._balloon,
        }
        write_process_file(directory, kept)

    # -- the loop -------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until the domain's directory is gone."""
        while self._directory_there():
            self._handle(self._wait())
            if self._vcpu.runs:
                self._look_at_suspend()
            if self._vcpu.runs and self._vcpu.next_step() <= time.monotonic():
                self._guarded(self._vcpu.step)

    def _wait(self) -> float:
        """Seconds that the loop may sleep."""
        if not self._vcpu.runs:
            return _LOOK_AFTER
        wait = self._vcpu.next_step() - time.monotonic()
        return min(max(wait, 0.0), _LOOK_AFTER)

    def _directory_there(self) -> bool:
        now = time.monotonic()
        if now < self._next_look:
            return True
        self._next_look = now + _LOOK_AFTER
        try:
            os.stat(control.SOCKET, dir_fd=self._directory)
        except FileNotFoundError:
            return False
        return True

    def _handle(self, seconds: float) -> None:
        # Rounded up to milliseconds: waking too early would only spin.
        timeout = -(-seconds * 1000 // 1)
        ready = [fd for fd, _ in self._poller.poll(timeout)]
        for fd in ready:
            # Serving an earlier one may have dropped it.
            if fd in self._connections:
                self._serve(fd)
        # Last: a new connection may get the number of a dropped one.
        if self._listener.fileno() in ready:
            self._accept()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        connection.setblocking(False)
        self._connections[connection.fileno()] = connection
        self._poller.register(connection, select.POLLIN)

    def _drop(self, fd: int) -> None:
        self._poller.unregister(fd)
        self._connections.pop(fd).close()
        self._watchers.discard(fd)
        if fd == self._pager:
            self._pager = None
            self._domain.paging = 0
            self._vcpu.forget_released()

    def _serve(self, fd: int) -> None:
        connection = self._connections[fd]
        try:
            message, _ = control.receive(connection)
        except (BlockingIOError, ConnectionResetError, ValueError):
            message = None
        if message is None:
            self._drop(fd)
            return
        answer: Message | None
        try:
            request = self._requests.get(message.get("do", ""))
            if request is None:
                raise OSError(errno.EINVAL, f"the guest knows no request {message}")
            answer = request(connection, message)
        except OSError as error:
            answer = {"errno": error.errno or errno.EIO, "error": error.strerror or str(error)}
        if answer is not None and fd in self._connections:
            self._tell(fd, answer)

    def _tell(self, fd: int, message: Message) -> None:
        """Answer; a peer that does not take the answer is cut off, since the guest cannot wait."""
        try:
            control.send(self._connections[fd], message)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):
            self._drop(fd)

    def _guarded(self, action: Callable[[], Any]) -> None:
        """Run `action`; if it finds the guest's memory wrong, the guest crashes at once."""
        try:
            action()
        except Crash as crash:
            self._crash(str(crash))

    def _crash(self, reason: str) -> None:
        self._vcpu.crash(reason)
        for fd in list(self._watchers):
            self._drop(fd)

    # -- pause, unpause, resume -----------------------------------------------------------------

    def _pause(self, _connection: socket.socket, _message: Message) -> Message:
        self._domain.paused = 1
        if self._domain.shutdown == RUNS:
            self._save_registers()
        return {}

    def _unpause(self, _connection: socket.socket, _message: Message) -> Message:
        domain = self._domain
        if domain.shutdown == RUNS:
            self._load_registers()
        if self._device_unproven:
            self._device_unproven = False
            self._compare_device_model()
        domain.paused = 0
        if domain.shutdown == RUNS:
            self._guarded(self._vcpu.start)
        return {}

    def _resume(self, _connection: socket.socket, _message: Message) -> Message:
        domain = self._domain
        if domain.shutdown == ShutdownReason.CRASH:
            raise OSError(errno.EINVAL, "the guest has crashed: " + domain.crash.decode())
        if domain.shutdown == ShutdownReason.SUSPEND:
            domain.shutdown = RUNS
            if not domain.paused:
                self._guarded(self._vcpu.start)
        return {}

    def _save_registers(self) -> None:
        """Store the registers of the stopped vCPU for hvm_getcontext.

        Registers that it has not taken yet stay as they are.
        """
        if self._vcpu.registers is not None and not self._domain.context_fresh:
            context = self._vcpu.registers.encode()
            self._shared.write_area(layout.CONTEXT_OFFSET, context)
            self._domain.context_length = len(context)
            self._vcpu.note_vcpu_info()

    def _load_registers(self) -> None:
        """Load registers that hvm_setcontext left, if any."""
        domain = self._domain
        if domain.context_fresh:
            context = self._shared.read_area(layout.CONTEXT_OFFSET, domain.context_length)
            try:
                registers = Registers.decode(context)
            except ForeignContextError as error:
                raise OSError(errno.ENOEXEC, f"the domain cannot run: {error}") from error
            self._vcpu.registers = registers
            domain.context_fresh = 0
            domain.steps = registers.steps
            domain.pages_checked = registers.pages_checked
            self._device_unproven = bool(domain.hvm)
        elif self._vcpu.registers is None:
            raise OSError(errno.EINVAL, "the domain cannot run: it has no registers")

    def _compare_device_model(self) -> None:
        """Crash a guest that starts from restored registers without the matching device model."""
        registers = self._vcpu.registers
        model = device_model.load(self._directory)
        if registers is None or model is None:
            self._crash("the device model was not restored")
            return
        wrong = model.mismatch(registers.token, registers.steps)
        if wrong is not None:
            self._crash(wrong)

    # -- suspend --------------------------------------------------------------------------------

    def _watch_suspend(self, connection: socket.socket, _message: Message) -> None:
        """Answer when the suspend request, which is in the domain page, has ended."""
        self._watchers.add(connection.fileno())
        if self._domain.shutdown != RUNS:
            self._tell(connection.fileno(), {})

    def _look_at_suspend(self) -> None:
        domain = self._domain
        wanted = domain.suspend_wanted
        if not wanted or domain.behaviour == Behaviour.REFUSE:
            return
        now = time.monotonic()
        if self._suspend_noticed[0] != wanted:
            self._suspend_noticed = (wanted, now)
        if domain.behaviour == Behaviour.DIE:
            self._crash("asked to suspend, the guest died, as it was told to")
            return
        late = domain.behaviour == Behaviour.LATE
        if late and now < self._suspend_noticed[1] + domain.behaviour_seconds:
            return
        with try_suspend_lock(self._directory) as locked:
            if not locked or domain.suspend_wanted != wanted:
                return
            domain.suspend_acknowledged = wanted
            domain.suspend_wanted = 0
        self._save_registers()
        domain.suspended_at = time.monotonic()
        domain.shutdown = ShutdownReason.SUSPEND
        for fd in list(self._watchers):
            self._tell(fd, {})

    # -- memory ---------------------------------------------------------------------------------

    def _build(self, _connection: socket.socket, message: Message) -> Message:
        """Fill memory, and get ready to run."""
        registers = fresh_registers(message)
        for first in range(0, registers.pages, FILL):
            self._vcpu.fill(registers, first, min(FILL, registers.pages - first))
        add_special_pages(self._shared, registers.pages)
        if self._domain.hvm:
            device_model.store(self._directory, device_model.DeviceModel(registers.token))
        self._vcpu.registers = registers
        self._save_registers()
        return {}

    def _verify(self, connection: socket.socket, _message: Message) -> Message | None:
        """Compare every page now; stops if the peer disconnects."""
        if self._domain.shutdown == ShutdownReason.CRASH:
            return {}
        if self._vcpu.registers is None or self._domain.context_fresh:
            self._load_registers()
        registers = self._vcpu.registers
        assert registers is not None
        gone = select.poll()
        gone.register(connection, select.POLLRDHUP)
        first = 0
        while first < registers.present and not gone.poll(0):
            count = min(FILL, registers.present - first)
            pfns = np.arange(first, first + count, dtype=np.uint64)
            self._guarded(partial(self._vcpu.check, pfns))
            if self._domain.shutdown == ShutdownReason.CRASH:
                break
            first += count
        return {}

    def _balloon(self, _connection: socket.socket, message: Message) -> Message:
        if self._vcpu.registers is None or self._domain.shutdown != RUNS:
            raise OSError(errno.EINVAL, "the guest does not run")
        return {"pages": self._vcpu.release(message["pages"])}

    def _start_paging(self, connection: socket.socket, _message: Message) -> None:
        """Hand the pager a userfaultfd for all memory; paging lasts as long as the connection."""
        domain = self._domain
        if not domain.stands_still:
            raise OSError(errno.EINVAL, "paging can be turned on only for a paused domain")
        if domain.paging:
            raise OSError(errno.EBUSY, "paging is on already")
        address = self._vcpu.memory_address
        fd = userfault.open_and_register(address, domain.capacity * PAGE_SIZE)
        try:
            control.send(connection, {"address": address}, [fd])
        finally:
            os.close(fd)
        domain.paging = 1
        self._pager = connection.fileno()
