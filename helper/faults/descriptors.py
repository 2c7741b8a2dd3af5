"""What faults do to descriptors. A descriptor's number stays in use: its owner closes it."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from typing import Final

_LIMIT_MILLISECONDS: Final = 1000
_GONE: Final = frozenset({errno.ENOTCONN, errno.EBADF})


def shut(fd: int, how: int = socket.SHUT_RDWR) -> bool:
    """Shut down `fd` if it is a socket whose other side has not gone already. Returns whether it is
    a socket."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return False
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.shutdown(how)
    except OSError as bad:
        if bad.errno not in _GONE:
            raise
    return True


def end(fd: int, *, reset: bool = False) -> None:
    """End what is behind `fd`, so that the other side sees it; it can still read what was written,
    unless that is a TCP connection which is to be `reset`."""
    if reset:
        _reset_at_end(fd)
    if shut(fd) and not reset:
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)


def _reset_at_end(fd: int) -> None:
    """Have a TCP connection reset when it is closed; other sockets cannot be."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def fails_to_write(errnoval: int) -> int:
    """A descriptor whose next write fails, in C as well, with ENOSPC, ECONNRESET or EPIPE; with
    EPIPE for any other errno. Raises OSError if this machine cannot do that."""
    if errnoval == errno.ENOSPC:
        return os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    if errnoval == errno.ECONNRESET:
        return _was_reset()
    read, write = os.pipe()
    os.close(read)
    return write


def _was_reset() -> int:
    """A TCP connection that its other end has reset; the writer of a UNIX socket would see
    EPIPE."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _address = listener.accept()
    _reset_at_end(theirs.fileno())
    theirs.close()
    poll = select.poll()
    poll.register(ours, 0)  # POLLERR
    poll.poll(_LIMIT_MILLISECONDS)
    return ours.detach()
