"""Octets between a descriptor and memory that its driver cannot reach.

Mapped pages of a domain are not pages of this process: a file system that hands the memory itself
to its transport or disk (9p, FUSE with direct_io, O_DIRECT) fails with EFAULT. So they go by way of
memory of our own, and from there to the domain, or back, by a pipe: unlike a copy by this process,
it fails with an error where a page has gone.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_AT_ONCE = 1 << 20

Buffer = bytes | bytearray | memoryview


def readv(fd: int, views: Sequence[Buffer]) -> int:
    """As os.readv."""
    with _pipe() as (out, into, room):
        own = memoryview(bytearray(min(room, sum(map(len, views)))))
        taken = os.readv(fd, [own])
        os.writev(into, [own[:taken]])
        _fill(out, views, taken)
        return taken


def writev(fd: int, buffers: Sequence[Buffer]) -> int:
    """As os.writev."""
    with _pipe() as (out, into, room):
        own = memoryview(bytearray(min(room, sum(map(len, buffers)))))
        gathered = os.writev(into, buffers)
        return os.write(fd, own[: os.readv(out, [own[:gathered]])])


@contextmanager
def _pipe() -> Iterator[tuple[int, int, int]]:
    """Its two ends, and how much it holds. Neither waits."""
    out, into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        with suppress(PermissionError):
            fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _AT_ONCE)
        yield out, into, fcntl.fcntl(into, fcntl.F_GETPIPE_SZ)
    finally:
        os.close(out)
        os.close(into)


def _fill(out: int, views: Sequence[Buffer], size: int) -> None:
    pending = list(views)
    while size:
        taken = os.readv(out, pending)
        size -= taken
        while pending and taken >= len(pending[0]):
            taken -= len(pending.pop(0))
        if taken:
            pending[0] = memoryview(pending[0])[taken:]
