"""A domain's shared memory: created by its guest, opened by every other process of the host."""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import select
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xen_save_helper.helper.hypervisors.simulated import layout
from xen_save_helper.helper.hypervisors.simulated.layout import DomainPage
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROCESS_FILE: Final = "process.json"
"""A file in the domain's directory: the guest's pid, its start time, and its memfds by name."""

AREAS: Final = ("domain", "p2m", "writes", "memory")

_MADV_POPULATE_READ: Final = 22
_MADV_POPULATE_WRITE: Final = 23
"""Since Linux 5.14; not in Python 3.11's mmap module."""
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
"""Python 3.11's own madvise does not let other threads run meanwhile."""
_LIBC.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")


class GuestGoneError(ProcessLookupError):
    """The domain has no process, or not any more."""


def _size(name: str, capacity: int) -> int:
    return {
        "domain": layout.DOMAIN_SIZE,
        "p2m": capacity,
        "writes": 4 * capacity,
        "memory": layout.PAGE_SIZE * capacity,
    }[name]


def create_areas(capacity: int) -> dict[str, int]:
    """Fresh memfds for a domain of `capacity` pfns, by name; they take memory as it is used."""
    fds: dict[str, int] = {}
    for name in AREAS:
        fds[name] = os.memfd_create(f"xen-{name}", os.MFD_CLOEXEC)
        os.ftruncate(fds[name], _size(name, capacity))
    return fds


class SharedMemory:
    """The mappings of a domain's memory in this process.

    `memory` has the guest's pages, `domain` what libxc would tell. The arrays are made on first
    use, so that numpy is not loaded for `domain` alone.
    """

    def __init__(self, fds: dict[str, int]) -> None:
        """Takes over the descriptors."""
        try:
            maps = {name: mmap.mmap(fd, os.fstat(fd).st_size) for name, fd in fds.items()}
        finally:
            for name, fd in fds.items():
                if name != "memory":
                    os.close(fd)
        self.memory_fd = fds["memory"]
        self._maps = maps
        self.domain = DomainPage.from_buffer(maps["domain"])
        self.memory = maps["memory"]
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        if _HUGE_PAGES.exists():
            # It must be possible to evict a single page: a hole in a huge page may only be zeroed.
            self.memory.madvise(mmap.MADV_NOHUGEPAGE)

    @cached_property
    def p2m(self) -> NDArray[np.uint8]:
        """A layout.P2M for each pfn."""
        import numpy as np

        return np.frombuffer(self._maps["p2m"], np.uint8)

    @property
    def states(self) -> mmap.mmap:
        """The same bytes, without numpy."""
        return self._maps["p2m"]

    def paged_pages(self) -> int:
        """The number of pages that are paged out."""
        return self.states[:].count(layout.P2M.PAGED_OUT)

    @cached_property
    def writes(self) -> NDArray[np.uint32]:
        """The vCPU's write counter for each pfn, odd while it writes."""
        import numpy as np

        return np.frombuffer(self._maps["writes"], np.uint32)

    @property
    def counters(self) -> mmap.mmap:
        """The same counters, 4 bytes each, without numpy."""
        return self._maps["writes"]

    def read_area(self, offset: int, length: int) -> bytes:
        return self._maps["domain"][offset : offset + length]

    def write_area(self, offset: int, data: bytes) -> None:
        self._maps["domain"][offset : offset + len(data)] = data

    def store_policy(self, cpuid: bytes, msr: bytes) -> None:
        """Store the CPUID leaves and MSR entries of the domain."""
        self.write_area(layout.CPUID_OFFSET, cpuid)
        self.domain.cpuid_length = len(cpuid)
        self.write_area(layout.MSR_OFFSET, msr)
        self.domain.msr_length = len(msr)

    def words(self) -> NDArray[np.uint64]:
        """The memory as one row of 512 words for each pfn."""
        import numpy as np

        return np.frombuffer(self.memory, np.uint64).reshape(-1, layout.PAGE_SIZE // 8)

    def make_ready(self, offset: int, length: int, *, writable: bool) -> None:
        """Populate these bytes, and this process's page tables for them, at once: much faster than
        a page fault for each page. Raises ENOSYS before Linux 5.14, ENOMEM."""
        advice = _MADV_POPULATE_WRITE if writable else _MADV_POPULATE_READ
        if _LIBC.madvise(self._address + offset, length, advice):
            errnoval = ctypes.get_errno()
            if errnoval == errno.EINVAL:
                raise OSError(errno.ENOSYS, "the simulated hypervisor needs Linux 5.14")
            raise OSError(errnoval, f"the guest's memory: {os.strerror(errnoval)}")

    def close(self) -> None:
        """Close the descriptor and drop the mappings; they end with their last user."""
        if self.memory_fd >= 0:
            os.close(self.memory_fd)
            self.memory_fd = -1
        for array in ("p2m", "writes"):
            self.__dict__.pop(array, None)
        del self.memory, self.domain, self._maps


def start_time(pid: int) -> int:
    """When a process started, in clock ticks: with its pid, this identifies it. Raises
    GuestGoneError."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError) as error:
        raise GuestGoneError(f"process {pid} is gone") from error


def write_process_file(directory: int, fds: dict[str, int]) -> None:
    """Write the process file; `directory` is a descriptor of the domain's directory."""
    pid = os.getpid()
    record = {"pid": pid, "start_time": start_time(pid), "fds": fds}
    temporary = PROCESS_FILE + ".new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
    with open(fd, "w") as file:
        json.dump(record, file)
    os.rename(temporary, PROCESS_FILE, src_dir_fd=directory, dst_dir_fd=directory)


class GuestProcess(NamedTuple):
    """The guest's process, held by a pidfd, so that its pid cannot be reused unnoticed."""

    pid: int
    pidfd: int
    fds: dict[str, int]

    @classmethod
    def open(cls, directory: int) -> GuestProcess:
        """The process of the domain in `directory` (a descriptor). Raises GuestGoneError."""
        try:
            fd = os.open(PROCESS_FILE, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        except FileNotFoundError as error:
            raise GuestGoneError("the domain has no process") from error
        with open(fd) as file:
            record: dict[str, Any] = json.load(file)
        pid = record["pid"]
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError as error:
            raise GuestGoneError(f"the guest's process {pid} is gone") from error
        process = cls(pid, pidfd, record["fds"])
        try:
            if start_time(pid) != record["start_time"] or not process.alive():
                raise GuestGoneError(f"the guest's process {pid} is gone")
        except GuestGoneError:
            process.close()
            raise
        return process

    def alive(self) -> bool:
        return not self.wait_end(0)

    def wait_end(self, seconds: float) -> bool:
        """Wait for the process to end; False if it did not in time."""
        poller = select.poll()
        poller.register(self.pidfd, select.POLLIN)
        return bool(poller.poll(seconds * 1000))

    def open_memory(self) -> SharedMemory:
        """Raises GuestGoneError."""
        fds: dict[str, int] = {}
        try:
            for name in AREAS:
                path = f"/proc/{self.pid}/fd/{self.fds[name]}"
                fds[name] = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            if not self.alive():
                raise GuestGoneError(f"the guest's process {self.pid} is gone")
        except (FileNotFoundError, ProcessLookupError, PermissionError) as error:
            for fd in fds.values():
                os.close(fd)
            if isinstance(error, PermissionError) and self.alive():
                raise
            raise GuestGoneError(f"the guest's process {self.pid} is gone") from error
        return SharedMemory(fds)

    def close(self) -> None:
        os.close(self.pidfd)
