"""Looks at the front of a stream that libxenguest will read, without consuming any of it."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
import stat
from collections.abc import Callable
from contextlib import ExitStack

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.patience import poll_milliseconds
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.static_data import Absent, Policy, policy_of

_MOST: Final = 1 << 15
"""Bytes to look at, at most. Xen's longest policies have a tenth of that; a pipe holds more."""
_PAUSE: Final = 0.01
"""Seconds until the next look: while some bytes are there, poll(2) does not wait for more."""
_PATIENCE: Final = 10.0
"""Seconds that the rest of the front may take to arrive."""

_SPLICE_F_NONBLOCK: Final = 2


def peek_policy(fd: int, abort: Abort) -> Policy | Absent:
    """The CPU policy of the stream that is about to be read from `fd`; waits for its bytes. YET if
    they do not all arrive; ALTOGETHER also if `fd` cannot be looked into.

    Raises the abort's error, and OSError.
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
    """A function that returns the next available bytes, at most so many, and consumes none."""
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
    """Peek into a pipe by tee(2), which Python lacks."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.tee.restype = ctypes.c_ssize_t
    libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
    count: int = libc.tee(fd, writer, most, _SPLICE_F_NONBLOCK)
    if count >= 0:
        return os.read(reader, count) if count else b""
    if ctypes.get_errno() == errno.EAGAIN:
        return b""
    raise OSError(ctypes.get_errno(), f"tee: {os.strerror(ctypes.get_errno())}")
