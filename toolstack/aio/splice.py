"""Move the octets of a stream from one descriptor into a pipe (splice(2)).

The source may belong to others too, so it is polled and never made non-blocking, as in `fd_io`; the
pipe is ours alone. What follows the part that the pipe's reader wants stays in the source, as long
as the other side sends it only when it is asked.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import stat
import sys
import termios
from collections.abc import Callable
from typing import Final

_AT_ONCE: Final = 1 << 20
"""Octets that one call moves at most."""

PIPE_SIZE: Final = 1 << 20
"""Octets that the pipe may hold, where the system lets us choose."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class StreamRelay:
    """Writes `preface` and moves the source's octets behind it, until the source ends, the pipe
    breaks, something fails, or `stop` is called. Needs a running asyncio loop.

    `pipe` is the writing end of a pipe; it is closed in the end. Then `done` is called with the
    OSError that ended it, or None; not after `stop`. A pipe that breaks is no failure of the
    relay's: its reader knows why. `moved` counts the source's octets.

    Raises OSError for a source that is no descriptor; `pipe` is closed then, too.
    """

    def __init__(
        self, source: int, pipe: int, preface: bytes, done: Callable[[OSError | None], None]
    ) -> None:
        self.moved = 0
        self._source = source
        self._pipe = pipe
        self._preface = memoryview(preface)
        self._done = done
        self._loop = asyncio.get_running_loop()
        try:
            mode = os.fstat(source).st_mode
        except OSError as error:
            os.close(pipe)
            raise OSError(error.errno, f"stream {source}: {error.strerror}") from None
        self._pollable = not (stat.S_ISREG(mode) or stat.S_ISBLK(mode))
        os.set_blocking(pipe, False)
        self._loop.add_writer(pipe, self._pipe_ready)

    @property
    def taken(self) -> int:
        """How many of the source's octets the pipe's reader has taken: none, as long as it has not
        got behind the preface."""
        if self._pipe < 0:
            return self.moved
        unread = fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4))
        return max(0, self.moved - int.from_bytes(unread, sys.byteorder))

    def stop(self) -> None:
        """Close the pipe now, wherever the stream stands."""
        if self._pipe >= 0:
            self._loop.remove_writer(self._pipe)
            if self._pollable:
                self._loop.remove_reader(self._source)
            os.close(self._pipe)
            self._pipe = -1

    def _source_ready(self) -> None:
        self._loop.remove_reader(self._source)
        self._loop.add_writer(self._pipe, self._pipe_ready)

    def _pipe_ready(self) -> None:
        try:
            over = self._move()
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._end(None)
        except OSError as error:
            self._end(error)
        else:
            if over:
                self._end(None)
            elif self._pollable and not self._preface:
                self._loop.remove_writer(self._pipe)
                self._loop.add_reader(self._source, self._source_ready)

    def _move(self) -> bool:
        """True at the source's end."""
        if self._preface:
            self._preface = self._preface[os.write(self._pipe, self._preface) :]
            return False
        count = os.splice(self._source, self._pipe, _AT_ONCE, flags=_FLAGS)
        self.moved += count
        return not count

    def _end(self, error: OSError | None) -> None:
        self.stop()
        self._done(error)


def make_pipe() -> tuple[int, int]:
    """A pipe for a relay: its reading and its writing end."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except PermissionError:
        pass  # an unprivileged user has had enough of them; the usual size does, too
    return reader, writer
