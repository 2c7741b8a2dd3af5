"""asyncio reads and writes, with limits, on descriptors that others use too.

A stream's descriptor is inherited and shared: with the helper, with `xl`, with a shell. O_NONBLOCK
belongs to the open file, not to the descriptor, so setting it would change everybody's descriptor.
So the loop polls, and each call transfers what it can without blocking: MSG_DONTWAIT on a socket,
at most PIPE_BUF into a pipe that polls writable. Files that cannot be polled (regular files,
/dev/null) are simply read and written.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import stat
from collections.abc import Callable
from typing import Final

from xen_save_helper.toolstack.aio.patience import Timer

_CHUNK: Final = 1 << 20
"""Bytes that one call reads from, or writes to, a file or socket at most."""


class UnexpectedEnd(EOFError):
    """The stream ended before all the bytes that were asked for."""


class _Descriptor:
    """One descriptor, used as its kind can be without blocking."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        mode = os.fstat(fd).st_mode
        self._socket = stat.S_ISSOCK(mode)
        self._chunk = select.PIPE_BUF if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else _CHUNK
        self.pollable = not (stat.S_ISREG(mode) or stat.S_ISBLK(mode))

    def read(self, size: int) -> bytes:
        """Read what there is, at most `size` bytes; b"" at the end. Raises BlockingIOError on a
        socket that has nothing after all."""
        size = min(size, _CHUNK)
        if not self._socket:
            return os.read(self.fd, size)
        borrowed = socket.socket(fileno=self.fd)
        try:
            return borrowed.recv(size, socket.MSG_DONTWAIT)
        finally:
            borrowed.detach()

    def write(self, data: memoryview) -> int:
        """Write what fits; returns the number of bytes. Raises BlockingIOError on a socket that
        takes none."""
        data = data[: self._chunk]
        if not self._socket:
            return os.write(self.fd, data)
        borrowed = socket.socket(fileno=self.fd)
        try:
            return borrowed.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        finally:
            borrowed.detach()


class Transfer:
    """Calls `step` whenever the descriptor is ready, until it returns True or raises OSError or
    EOFError; then `done` once, with the error if there was one. `done` is called in the same turn
    of the loop as the last step, so nothing comes between the last byte and its report.

    `limit` is how long, in seconds, no step may be possible (0: no limit); after that `done` gets a
    TimeoutError.
    """

    def __init__(
        self,
        descriptor: _Descriptor,
        step: Callable[[], bool],
        done: Callable[[Exception | None], None],
        *,
        writing: bool,
        limit: float,
        what: str,
    ) -> None:
        self._descriptor = descriptor
        self._step_once = step
        self._done = done
        self._writing = writing
        self._limit = limit
        self._what = what
        self._loop = asyncio.get_running_loop()
        self._timer: Timer | None = None
        self._soon: asyncio.Handle | None = None
        self._polled = descriptor.pollable and self._poll()
        if self._polled:
            self._restart_timer()
        else:
            self._soon = self._loop.call_soon(self._step)

    def cancel(self) -> None:
        """Stop; `done` is no longer called. What was transferred stays transferred."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._polled:
            self._polled = False
            remove = self._loop.remove_writer if self._writing else self._loop.remove_reader
            remove(self._descriptor.fd)

    def _poll(self) -> bool:
        add = self._loop.add_writer if self._writing else self._loop.add_reader
        try:
            add(self._descriptor.fd, self._step)
        except PermissionError:
            return False  # epoll refuses descriptors that are always ready, such as /dev/null
        return True

    def _restart_timer(self) -> None:
        if self._timer is None:
            self._timer = Timer(self._limit, self._timed_out)
        else:
            self._timer.restart()

    def _timed_out(self) -> None:
        verb = "taken" if self._writing else "sent"
        self._end(
            TimeoutError(f"{self._what}: the other side has {verb} nothing for {self._limit:g} s")
        )

    def _step(self) -> None:
        try:
            over = self._step_once()
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, EOFError) as error:
            self._end(error)
            return
        if over:
            self._end(None)
        elif self._polled:
            self._restart_timer()
        else:
            self._soon = self._loop.call_soon(self._step)

    def _end(self, error: Exception | None) -> None:
        self.cancel()
        self._done(error)


def start_write(
    fd: int,
    data: bytes,
    done: Callable[[Exception | None], None],
    *,
    limit: float,
    what: str = "stream",
) -> Transfer:
    """Write all of `data` (not empty), then call `done(None)`, or `done(error)` with an OSError."""
    descriptor = _Descriptor(fd)
    left = memoryview(data)

    def step() -> bool:
        nonlocal left
        left = left[descriptor.write(left) :]
        return not left

    return Transfer(descriptor, step, done, writing=True, limit=limit, what=what)


def start_read(
    fd: int,
    size: int,
    done: Callable[[bytes, Exception | None], None],
    *,
    limit: float,
    what: str = "stream",
) -> Transfer:
    """Read exactly `size` bytes (above 0), then call `done(data, None)`, or `done` with what there
    was and an OSError or UnexpectedEnd. Memory is allocated as the bytes come."""
    descriptor = _Descriptor(fd)
    data = bytearray()

    def step() -> bool:
        some = descriptor.read(size - len(data))
        if not some:
            raise UnexpectedEnd(f"{what}: the stream ends after {len(data)} bytes, want {size}")
        data.extend(some)
        return len(data) == size

    def over(error: Exception | None) -> None:
        done(bytes(data), error)

    return Transfer(descriptor, step, over, writing=False, limit=limit, what=what)


async def write_all(fd: int, data: bytes, *, limit: float, what: str = "stream") -> None:
    """Write all of `data`. Raises OSError, TimeoutError if nothing is taken for `limit` seconds. A
    cancellation stops it at once."""
    if not data:
        return
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def done(error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    transfer = start_write(fd, data, done, limit=limit, what=what)
    try:
        await future
    finally:
        transfer.cancel()


async def read_exactly(fd: int, size: int, *, limit: float, what: str = "stream") -> bytes:
    """Read exactly `size` bytes. Raises UnexpectedEnd if the stream ends before, OSError, and
    TimeoutError if nothing comes for `limit` seconds."""
    if not size:
        return b""
    future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(data: bytes, error: Exception | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(data)
        else:
            future.set_exception(error)

    transfer = start_read(fd, size, done, limit=limit, what=what)
    try:
        return await future
    finally:
        transfer.cancel()
