"""Move a stream from a descriptor into a pipe (splice(2)).

Others may use the source too, so it is polled and never made non-blocking, as in `fd_io`; the pipe
is ours alone. What follows the part that the pipe's reader wants stays in the source, provided that
the other side sends it only when asked.
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
"""Bytes that one call moves at most."""

PIPE_SIZE: Final = 1 << 20
"""Bytes that the pipe may hold, if the system lets us choose."""

_FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class StreamRelay:
    """Writes `preface` and moves the source's bytes after it, until the source ends, the pipe
    breaks, something fails, or `stop` is called. Needs a running asyncio loop.

    `pipe` is the writing end of a pipe, and is closed at the end. `done` is then called with the
    OSError that ended the relay, or None; it is not called after `stop`. A broken pipe is not a
    failure of the relay: its reader knows why. `moved` counts the source's bytes.

    Raises OSError if the source is not a descriptor; `pipe` is closed then, too.
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
        """The number of the source's bytes that the pipe's reader has read; 0 until it is past the
        preface."""
        if self._pipe < 0:
            return self.moved
        unread = fcntl.ioctl(self._pipe, termios.FIONREAD, bytes(4))
        return max(0, self.moved - int.from_bytes(unread, sys.byteorder))

    def stop(self) -> None:
        """Close the pipe now, wherever in the stream we are."""
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
        """Move some bytes. Returns True at the source's end."""
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
    """Make a pipe for a relay; returns its reading and its writing end."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
    except PermissionError:
        pass  # an unprivileged user's quota is used up; the default size will do
    return reader, writer
