"""userfaultfd(2) through ctypes, for the guest (its user) and the pager (its server)."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_SYSCALL: Final = {"x86_64": 323, "aarch64": 282}
_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_UFFD_API: Final = 0xAA
_USER_MODE_ONLY: Final = 1
_FEATURE_EVENT_REMOVE: Final = 1 << 3
_FEATURE_MISSING_SHMEM: Final = 1 << 5
_NEEDED: Final = _FEATURE_MISSING_SHMEM | _FEATURE_EVENT_REMOVE
_REGISTER_MODE_MISSING: Final = 1

_API: Final = 0xC018AA3F
_REGISTER: Final = 0xC020AA00
_WAKE: Final = 0x8010AA02
_COPY: Final = 0xC028AA03
_ZEROPAGE: Final = 0xC020AA04

_EVENT_PAGEFAULT: Final = 0x12
_EVENT_REMOVE: Final = 0x15
_MESSAGE: Final = struct.Struct("<B7xQQQ")
"""event; flags and address of a fault, or start and end of a removed range."""
_READ: Final = 64 * _MESSAGE.size


def is_resident(address: int) -> bool:
    """Whether the page of shared memory at `address` is present: accessing it does not fault."""
    vector = ctypes.c_ubyte()
    if _LIBC.mincore(ctypes.c_void_p(address), ctypes.c_size_t(4096), ctypes.byref(vector)):
        code = ctypes.get_errno()
        raise OSError(code, f"mincore: {os.strerror(code)}")
    return bool(vector.value & 1)


@dataclass(frozen=True)
class Fault:
    address: int


@dataclass(frozen=True)
class Removed:
    """The process gave this range back, and waits until the event is read."""

    start: int
    end: int


def _open() -> int:
    """A userfaultfd for user-mode faults only, which any user may open. Raises OSError with the way
    out in its text."""
    machine = os.uname().machine
    if machine not in _SYSCALL:
        raise OSError(errno.ENOSYS, f"userfaultfd(2): its number on {machine} is not known here")
    fd = _LIBC.syscall(_SYSCALL[machine], os.O_CLOEXEC | os.O_NONBLOCK | _USER_MODE_ONLY)
    if fd < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"userfaultfd(2): {os.strerror(code)}: {_way_out(code)}")
    return int(fd)


def _way_out(code: int) -> str:
    """What refuses the system call, and what to do about it."""
    if code == errno.EPERM:
        if _of_status("Seccomp") == "2":
            return (
                "a seccomp filter forbids it; allow the call to the receiver (systemd: "
                "SystemCallFilter=userfaultfd; Docker and Podman: a seccomp profile that has it)"
            )
        if os.geteuid() and _unprivileged() == "0":
            return "root only: `sysctl vm.unprivileged_userfaultfd=1`, or run as root"
        return "a security module forbids it; allow the call to the receiver"
    if code == errno.ENOSYS:
        return "a kernel with CONFIG_USERFAULTFD is needed, and a sandbox that allows the call"
    if code == errno.EINVAL:
        return "Linux 5.11 or later is needed"
    return "the host is short of it"


def _of_status(name: str) -> str:
    """A field of /proc/self/status; "" if there is none."""
    for line in Path("/proc/thread-self/status").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    return ""


def _unprivileged() -> str:
    """vm.unprivileged_userfaultfd; "" if the kernel has no such setting."""
    try:
        return Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip()
    except OSError:
        return ""


def why_not() -> str:
    """Why this process cannot page its shared memory, with the way out; "" if it can."""
    try:
        fd = _open()
    except OSError as error:
        return str(error.strerror)
    try:
        argument = bytearray(struct.pack("<QQQ", _UFFD_API, 0, 0))
        fcntl.ioctl(fd, _API, argument)
    except OSError as error:
        return f"userfaultfd(2): UFFDIO_API: {error.strerror}"
    finally:
        os.close(fd)
    _, features, _ = struct.unpack("<QQQ", argument)
    if missing := _NEEDED & ~features:
        return f"userfaultfd(2): the kernel lacks features {missing:#x}; Linux 4.11 has them"
    return ""


def open_and_register(address: int, length: int) -> int:
    """A userfaultfd on which missing pages of a shared mapping of this process are reported.

    Raises OSError with the way out in its text.
    """
    fd = _open()
    try:
        fcntl.ioctl(fd, _API, struct.pack("<QQQ", _UFFD_API, _NEEDED, 0))
        fcntl.ioctl(fd, _REGISTER, struct.pack("<QQQQ", address, length, _REGISTER_MODE_MISSING, 0))
    except OSError as error:
        os.close(fd)
        raise OSError(error.errno, f"userfaultfd: {os.strerror(error.errno or 0)}") from error
    return int(fd)


def read_events(fd: int) -> list[Fault | Removed]:
    """All pending events, without blocking."""
    events: list[Fault | Removed] = []
    while True:
        try:
            data = os.read(fd, _READ)
        except BlockingIOError:
            return events
        for kind, first, second, _ in _MESSAGE.iter_unpack(data):
            if kind == _EVENT_PAGEFAULT:
                events.append(Fault(second))
            elif kind == _EVENT_REMOVE:
                events.append(Removed(first, second))
            else:
                raise OSError(errno.EPROTO, f"userfaultfd: unexpected event {kind:#x}")
        if len(data) < _READ:
            return events


def _transfer(fd: int, operation: int, argument: bytearray, done_at: int, length: int) -> int:
    """Bytes done, fewer than `length` if the kernel says EAGAIN."""
    try:
        fcntl.ioctl(fd, operation, argument)
    except BlockingIOError:
        (done,) = struct.unpack_from("<q", argument, done_at)
        return max(0, int(done))
    return length


def copy(fd: int, address: int, source: int, length: int) -> int:
    """Put pages in place and wake those who wait for them; bytes done, which may be fewer.

    Raises FileExistsError for a page that is present.
    """
    argument = bytearray(struct.pack("<QQQQq", address, source, length, 0, 0))
    return _transfer(fd, _COPY, argument, 32, length)


def zero(fd: int, address: int, length: int) -> int:
    """Like `copy`, with zeros."""
    argument = bytearray(struct.pack("<QQQq", address, length, 0, 0))
    return _transfer(fd, _ZEROPAGE, argument, 24, length)


def wake(fd: int, address: int, length: int) -> None:
    fcntl.ioctl(fd, _WAKE, struct.pack("<QQ", address, length))
