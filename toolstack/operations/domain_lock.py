"""One operation on a domain at a time, as with libxl's lock on a domain's userdata.

A file in the host's state directory has a range for each domid, which an operation locks while it
lasts. The locks belong to open file descriptions (F_OFD_SETLK, fcntl(2)): they also hold against
this process itself, and the kernel drops them when their holder dies, whatever kills it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

FILE: Final = "operations.lock"

_PLACE: Final = 32
"""Bytes of a domain's range: the holder's pid and what it does, as text."""


class DomainBusyError(BlockingIOError):
    """Another operation on the domain is in progress; the text names it and its process."""


@contextmanager
def domain_lock(state_dir: Path, domid: int, what: str) -> Iterator[None]:
    """Keep other operations off the domain while the context lasts, without waiting.

    `what` (at most 20 letters) names this one in the others' error. Raises DomainBusyError, and
    OSError if the directory cannot be written.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    fd = os.open(state_dir / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        place = domid * _PLACE
        # struct flock; l_pid must be 0 for these locks.
        wanted = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, place, _PLACE, 0)
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except OSError as error:
            if error.errno not in {errno.EAGAIN, errno.EACCES}:
                raise
            raise DomainBusyError(error.errno, _busy(fd, place, domid)) from None
        os.pwrite(fd, f"{os.getpid()} {what}".encode().ljust(_PLACE, b"\0"), place)
        try:
            yield
        finally:
            os.pwrite(fd, bytes(_PLACE), place)
    finally:
        os.close(fd)


def _busy(fd: int, place: int, domid: int) -> str:
    text = os.pread(fd, _PLACE, place).rstrip(b"\0").decode(errors="replace")
    pid, _, what = text.partition(" ")
    # The holder may not have written it yet, or may just have ended.
    who = f" ({what}, process {pid})" if what else ""
    return f"domain {domid} is in the middle of another operation{who}"
