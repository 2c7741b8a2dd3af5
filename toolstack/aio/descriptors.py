"""The descriptors that an operation is given, checked before anything is begun, and the limit on
those that it will open (RLIMIT_NOFILE).

The checks raise as those of `toolstack.rules.arguments` do.
"""

from __future__ import annotations

import fcntl
import os
import resource
import stat
from pathlib import Path
from typing import Final

NEEDED: Final = 32
"""Descriptors that a restore has open at once, beside those that are open before it, in the
controller or in a helper (which starts with fewer): sockets, pipes and their watches, the guest's
memory and paging."""


def why_not() -> str:
    """Why a restore would run out of descriptors, with the way out; "" if it would not."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return ""
    opened = len(os.listdir("/proc/self/fd"))
    if opened + NEEDED <= soft:
        return ""
    return (
        f"this process may have {soft} descriptors and has {opened}; a restore needs {NEEDED} "
        "more: raise the limit (ulimit -n)"
    )


def raise_limit(more: int) -> None:
    """Raise this process's limit, as far as it may, so that it can open `more` descriptors."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = len(os.listdir("/proc/self/fd")) + more
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def duplicate(fd: int) -> int:
    """Return another descriptor of the same open file, which the caller closes; -1 for -1. It is
    above 2: those are for the standard streams only."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd >= 0 else -1


def readable(name: str, value: object) -> int:
    """Return `value` if it is a descriptor to read from."""
    return _descriptor(name, value, "reading", os.O_WRONLY)


def writable(name: str, value: object) -> int:
    """Return `value` if it is a descriptor to write to."""
    return _descriptor(name, value, "writing", os.O_RDONLY)


def _descriptor(name: str, value: object, purpose: str, unfit: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(
            f"{name}: want a descriptor's number, as fileno() returns, not a {type(value).__name__}"
        )
    try:
        mode = fcntl.fcntl(value, fcntl.F_GETFL)
    except (OSError, ValueError, OverflowError):
        raise ValueError(f"{name}: {value} is not an open descriptor") from None
    if mode & os.O_ACCMODE == unfit or mode & os.O_PATH:
        raise ValueError(f"{name}: descriptor {value} is not open for {purpose}")
    if stat.S_ISDIR(os.fstat(value).st_mode):
        raise ValueError(f"{name}: descriptor {value} is a directory")
    return value


def file(value: object) -> Path | int:
    """Return `value` if it is a path or a descriptor's number, a path as a Path."""
    if isinstance(value, bool) or not isinstance(value, int | str | os.PathLike):
        raise TypeError(
            f"file: want a path, or a descriptor's number as fileno() returns, not {value!r}"
        )
    return value if isinstance(value, int) else Path(value)
