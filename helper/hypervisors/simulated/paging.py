"""The pager's end of a domain's paging: a userfaultfd on the guest's memory.

A page is paged out if its place in the memfd is a hole: the guest's access then waits in the kernel
until the whole page is put there, or for ever.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import socket
from collections.abc import Sequence
from typing import Final

from xen_save_helper.helper.hypervisors.interface import PagingRequest
from xen_save_helper.helper.hypervisors.simulated import control, userfault
from xen_save_helper.helper.hypervisors.simulated.layout import P2M, PAGE_SIZE
from xen_save_helper.helper.hypervisors.simulated.shared import SharedMemory
from xen_save_helper.helper.hypervisors.simulated.userfault import Fault
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, runs_of

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2

_PAGED_OUT: Final = bytes([P2M.PAGED_OUT])
_POPULATED: Final = bytes([P2M.POPULATED])

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def _punch_hole(fd: int, offset: int, length: int) -> None:
    """fallocate(2) with PUNCH_HOLE, which Python's os module lacks."""
    mode = _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE
    if _LIBC.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        code = ctypes.get_errno()
        raise OSError(code, f"fallocate: {os.strerror(code)}")


class SimulatedPaging:
    """interface.Paging. The connection to the guest stays open as long as paging is on."""

    loaded_at_once = 16
    own = pfns_of()

    def __init__(
        self, shared: SharedMemory, connection: socket.socket, userfault_fd: int, address: int
    ) -> None:
        """Takes over the connection and the descriptor; `address` is that of pfn 0 in the guest."""
        self._shared = shared
        self._p2m = shared.states
        self._connection = connection
        self._fd = userfault_fd
        self._address = address
        self._kept: list[PagingRequest] = []
        """Requests that were read while a page was being loaded."""
        self._signalled = False
        """Whether the descriptor polls readable for `_kept`."""
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLIN)
        self._epoll.register(self._wakeup, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def evict(self, pfns: Pfns) -> None:
        """Raises EINVAL for a pfn without a page, or one that is paged out already."""
        p2m, runs = self._p2m, list(runs_of(pfns))
        for first, count, _ in runs:
            states = p2m[first : first + count]
            if states != _POPULATED * count:
                pfn = first + len(states) - len(states.lstrip(_POPULATED))
                raise OSError(errno.EINVAL, f"pfn {pfn:#x} has no page that could be paged out")
        for first, count, _ in runs:
            # The state first: a running guest must not take the hole for a page.
            p2m[first : first + count] = _PAGED_OUT * count
            _punch_hole(self._shared.memory_fd, first * PAGE_SIZE, count * PAGE_SIZE)

    def still_evicted(self, pfns: Pfns) -> Pfns:
        return pfns_of(pfn for pfn in pfns if self._p2m[pfn] == P2M.PAGED_OUT)

    def wake_all(self, evicted: Pfns) -> None:
        """Nobody waits: a guest does not outlive a pager."""

    def take_requests(self) -> list[PagingRequest]:
        self._read_events()
        requests, self._kept = self._kept, []
        if self._signalled:
            os.eventfd_read(self._wakeup)
            self._signalled = False
        return requests

    def _read_events(self) -> None:
        """Add pending events to `_kept`; faults on pages that were never paged out get zeros."""
        p2m = self._p2m
        for event in userfault.read_events(self._fd):
            if isinstance(event, Fault):
                pfn = (event.address - self._address) // PAGE_SIZE
                if p2m[pfn] == P2M.PAGED_OUT:
                    self._kept.append(PagingRequest(pfn, 0, dropped=False))
                else:
                    self._fill_with_zeros(pfn)
            else:
                first = (event.start - self._address) // PAGE_SIZE
                end = (event.end - self._address) // PAGE_SIZE
                states = enumerate(p2m[first:end], first)
                gone = [pfn for pfn, state in states if state == P2M.PAGED_OUT]
                p2m[first:end] = bytes([P2M.ABSENT]) * (end - first)
                self._kept += [PagingRequest(pfn, 0, dropped=True) for pfn in gone]

    def _fill_with_zeros(self, pfn: int) -> None:
        """Answer a fault on a page that exists but was never written, or arrived meanwhile."""
        address = self._address + pfn * PAGE_SIZE
        try:
            userfault.zero(self._fd, address, PAGE_SIZE)
        except FileExistsError:
            userfault.wake(self._fd, address, PAGE_SIZE)

    def load(self, first: int, data: memoryview) -> None:
        """Dropped pages are skipped. Raises EINVAL for a page that is not paged out, or a partial
        page."""
        count, rest = divmod(data.nbytes, PAGE_SIZE)
        if rest:
            raise OSError(errno.EINVAL, f"{data.nbytes} bytes are not whole pages")
        if data.readonly:
            data = memoryview(bytearray(data))  # ctypes tells no address of it
        source = ctypes.addressof(ctypes.c_char.from_buffer(data))
        p2m = self._p2m
        pfn, end = first, first + count
        while pfn < end:
            states = p2m[pfn:end]
            pages = len(states) - len(states.lstrip(_PAGED_OUT))
            if not pages:
                if states[0] == P2M.POPULATED:
                    raise OSError(errno.EINVAL, f"pfn {pfn:#x} is not paged out")
                pfn += 1
                continue
            place = source + (pfn - first) * PAGE_SIZE
            address = self._address + pfn * PAGE_SIZE
            copied = userfault.copy(self._fd, address, place, pages * PAGE_SIZE) // PAGE_SIZE
            p2m[pfn : pfn + copied] = _POPULATED * copied
            pfn += copied
            if copied < pages:
                # The guest is giving memory back, and waits until that event is read.
                self._read_events()
                if self._kept and not self._signalled:
                    os.eventfd_write(self._wakeup, 1)
                    self._signalled = True

    def resume(self, requests: Sequence[PagingRequest]) -> None:
        for request in requests:
            userfault.wake(self._fd, self._address + request.pfn * PAGE_SIZE, PAGE_SIZE)

    def close(self) -> None:
        """Turn paging off: a guest that waits for a page now, or accesses one later, crashes."""
        if self._fd < 0:
            return
        self._shared.domain.paging = 0
        self._epoll.close()
        os.close(self._wakeup)
        os.close(self._fd)
        self._fd = -1
        del self._p2m
        self._connection.close()


def open_paging(shared: SharedMemory, connection: socket.socket) -> SimulatedPaging:
    """Turn paging on; takes over the connection, a fresh one to the guest."""
    try:
        answer, fds = control.ask(connection, {"do": "paging"})
    except BaseException:
        connection.close()
        raise
    fcntl.fcntl(fds[0], fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return SimulatedPaging(shared, connection, fds[0], answer["address"])
