"""Descriptors whose next write fails as it is wanted, for an engine that writes in C, too."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct

_LIMIT_MILLISECONDS = 1000


def fails_to_write(errnoval: int) -> int:
    """A descriptor whose next write fails with ENOSPC, ECONNRESET or EPIPE; with EPIPE for
    anything else. Raises OSError where this machine cannot do that."""
    if errnoval == errno.ENOSPC:
        return os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    if errnoval == errno.ECONNRESET:
        return _reset()
    read, write = os.pipe()
    os.close(read)
    return write


def _reset() -> int:
    """A TCP connection that its other end has reset: a UNIX socket tells its writer EPIPE."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _address = listener.accept()
    # With no time to linger, close is a reset.
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    poll = select.poll()
    poll.register(ours, 0)  # POLLERR
    poll.poll(_LIMIT_MILLISECONDS)
    return ours.detach()
