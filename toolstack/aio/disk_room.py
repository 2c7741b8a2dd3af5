"""Room on a disk for what is about to be written, and what the kernel says about files there."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import re
import resource
import stat
from pathlib import Path
from typing import Final

_FALLOC_FL_KEEP_SIZE: Final = 1
_RESERVED_AT_ONCE: Final = 1 << 30
"""Bytes: a filesystem in memory allocates the pages there and then, which takes time."""

_FS_IOC_GETFLAGS: Final = 0x80086601
_FS_APPEND_FL: Final = 0x20

_CANNOT_RESERVE: Final = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
"""Errors of a filesystem, or a kernel, that does not have fallocate(2) for this."""


def check(fd: int, need: int) -> None:
    """Check, as far as possible, that `need` bytes can be written to the file or block device `fd`
    from its position on. Other kinds always pass.

    Raises OSError: EFBIG beyond the process's limit (RLIMIT_FSIZE), ENOSPC if the filesystem has
    less free.
    """
    status = os.fstat(fd)
    if stat.S_ISBLK(status.st_mode):
        position = os.lseek(fd, 0, os.SEEK_CUR)
        size = os.lseek(fd, 0, os.SEEK_END)
        os.lseek(fd, position, os.SEEK_SET)
        _enough(need, size - position, "the device has")
    if not stat.S_ISREG(status.st_mode):
        return
    appends = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND
    position = status.st_size if appends else os.lseek(fd, 0, os.SEEK_CUR)
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY and position + need > most:
        raise OSError(
            errno.EFBIG,
            f"{os.strerror(errno.EFBIG)}: the guest needs up to {mebibytes(need)}, and files of "
            f"this process may have {mebibytes(most)} (`ulimit -f`)",
        )
    there = max(0, status.st_blocks * 512 - position)
    filesystem = os.fstatvfs(fd)
    if filesystem.f_blocks:  # some do not say
        blocks = filesystem.f_bfree if os.geteuid() == 0 else filesystem.f_bavail
        _enough(need - min(need, there), blocks * filesystem.f_frsize, "its filesystem has")


def _enough(need: int, free: int, who: str) -> None:
    if need > free:
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}: the guest needs up to {mebibytes(need)}, and {who} "
            f"{mebibytes(free)}; make room, or save elsewhere",
        )


def mebibytes(size: int) -> str:
    """Format `size` bytes for people."""
    return f"{size / (1 << 20):,.1f} MiB"


async def reserve(fd: int, need: int) -> None:
    """Reserve `need` bytes of the filesystem for the file `fd`, whose length stays, so that neither
    quotas nor other writers get in the way. Does nothing on a filesystem that cannot do so.

    Raises OSError: ENOSPC, EDQUOT, …
    """
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    for start in range(0, need, _RESERVED_AT_ONCE):
        size = min(need - start, _RESERVED_AT_ONCE)
        while fallocate(fd, _FALLOC_FL_KEEP_SIZE, start, size):
            number = ctypes.get_errno()
            if number in _CANNOT_RESERVE:
                return
            if number != errno.EINTR:
                raise OSError(
                    number,
                    f"{os.strerror(number)}: the guest needs up to {mebibytes(need)}; make room, "
                    "or save elsewhere",
                )
        await asyncio.sleep(0)


def mount_points() -> set[bytes]:
    """The paths at which something is mounted, as this process sees them."""
    text = Path("/proc/self/mountinfo").read_bytes()
    paths = (line.split(b" ")[4] for line in text.splitlines())
    return {re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), p) for p in paths}


def append_only(path: Path) -> bool:
    """Whether the file has the flag of `chattr +a`; False if it cannot be read, or has no flags."""
    flags = bytearray(8)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.ioctl(fd, _FS_IOC_GETFLAGS, flags)
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(int.from_bytes(flags[:4], "little") & _FS_APPEND_FL)
