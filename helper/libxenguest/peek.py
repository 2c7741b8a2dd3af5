"""A look at the front of a stream that libxenguest will read: it leaves all of it where it is."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.patience import poll_milliseconds
from xen_save_helper.ipc_schema.streams.static_data import Absent, Policy, policy_of

_MOST: Final = 1 << 15
"""Octets that are looked at. Xen's longest policies have a tenth of that; a pipe holds more."""
_PAUSE: Final = 0.01
"""Seconds until octets that are there are looked at again: poll(2) would not wait for more."""
_PATIENCE: Final = 10.0
"""Seconds that the rest of the front may take to come."""

_SPLICE_F_NONBLOCK: Final = 2


def peek_policy(fd: int, abort: Abort) -> Policy | Absent:
    """The CPU policy of the stream that is about to be read from `fd`; waits for its octets. YET
    where they do not come to an end; ALTOGETHER where `fd` cannot be looked into, too.

    Raises what the abort says, and OSError.
    """
    with ExitStack() as stack:
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return policy_of(os.pread(fd, _MOST, os.lseek(fd, 0, os.SEEK_CUR)))
        look = _looker(fd, mode, stack)
        if look is None:
            return Absent.ALTOGETHER
        poll = select.poll()
        poll.register(fd, select.POLLIN | select.POLLRDHUP)
        poll.register(abort.fileno(), select.POLLIN)
        seen, waited = 0, 0.0
        while True:
            over = bool(dict(poll.poll()).get(fd, 0) & (select.POLLHUP | select.POLLRDHUP))
            abort.check()
            front = look(_MOST)
            found = policy_of(front)
            if found is not Absent.YET or len(front) == _MOST or (len(front) == seen and over):
                return found
            waited = 0.0 if len(front) > seen else waited + _PAUSE
            if waited > _PATIENCE:
                return found
            seen = len(front)
            pause = select.poll()
            pause.register(abort.fileno(), select.POLLIN)
            pause.poll(poll_milliseconds(_PAUSE))


def _looker(fd: int, mode: int, stack: ExitStack) -> Callable[[int], bytes] | None:
    """What gives the next octets that are there, at most so many, and takes none."""
    if stat.S_ISSOCK(mode):
        own = stack.enter_context(socket.socket(fileno=os.dup(fd)))
        return lambda most: own.recv(most, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    if stat.S_ISFIFO(mode):
        reader, writer = os.pipe2(os.O_CLOEXEC)
        stack.callback(os.close, reader)
        stack.callback(os.close, writer)
        return lambda most: _teed(fd, reader, writer, most)
    return None


def _teed(fd: int, reader: int, writer: int, most: int) -> bytes:
    """By tee(2), which Python has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.tee.restype = ctypes.c_ssize_t
    libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
    count: int = libc.tee(fd, writer, most, _SPLICE_F_NONBLOCK)
    if count >= 0:
        return os.read(reader, count) if count else b""
    if ctypes.get_errno() == errno.EAGAIN:
        return b""
    raise OSError(ctypes.get_errno(), f"tee: {os.strerror(ctypes.get_errno())}")
