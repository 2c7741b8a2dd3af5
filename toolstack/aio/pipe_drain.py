"""Wait until the reader of a pipe has read all that was written to it."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import select
import stat
import struct
import termios
from typing import Final

from xen_save_helper.ipc_schema.channel.waits import Patience

_POLL: Final = 0.01
"""Seconds between looks: nothing tells the writer of a pipe that it is empty."""


async def drained(fd: int, limit: float, name: str) -> None:
    """Wait until the reader of a pipe or socket has read all that is in it; other kinds return at
    once. What the reader does with it afterwards is unknown here.

    Raises BrokenPipeError if the reader disconnects before, TimeoutError if it reads nothing for
    `limit` seconds.
    """
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    request = termios.FIONREAD if stat.S_ISFIFO(mode) else termios.TIOCOUTQ
    loop = asyncio.get_running_loop()
    before, patience = None, Patience(limit, loop.time())
    poll = select.poll()
    poll.register(fd, 0)  # POLLERR and POLLHUP alone
    while True:
        gone = bool(poll.poll(0))
        left = _count(fd, request)
        if not left:
            return
        if gone:
            raise BrokenPipeError(
                errno.EPIPE, f"the reader of {name} disconnected with {left} bytes unread"
            )
        if left != before:
            before = left
            patience.restart(loop.time())
        elif patience.look(loop.time()):
            raise TimeoutError(f"{name}: the other side has taken nothing for {limit:g} s")
        await asyncio.sleep(_POLL)


def _count(fd: int, request: int) -> int:
    """The bytes that are not read yet; 0 for a socket that does not say."""
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, request, bytes(4)))[0])
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOTTY, errno.EOPNOTSUPP}:
            return 0
        raise
