"""Faults in the records of the libxl stream, which the controller writes and reads.

They do not pass a relay as libxc's do: the helper works on the same descriptor in between, and a
write that fails belongs to a record, even to the last one, which no other follows.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.injector import Firing, Strike
from xen_save_helper.helper.faults.outlet import Outlet, Pace, ending
from xen_save_helper.helper.faults.record_faults import RecordFaults
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.points import Moment, record_point
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE, padding
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.seams import StreamSeam, Transfer

Done = Callable[[Exception | None], None]

_LONGEST: Final = 1 << 24
"""Bytes of the longest body that is read as a whole."""
_MANGLE: Final = (*actions.RECORD, actions.FLIP)


class _Work:
    """A write that takes time."""

    def __init__(self, work: Coroutine[Any, Any, None], done: Done) -> None:
        self._done = done
        self._task = spawn(work)
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        self._task.cancel()

    def _over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        self._done(error)


class RecordSeam(StreamSeam):
    def __init__(self, strike: Strike) -> None:
        self._strike = strike
        self._made = bytearray()
        self._outlet = Outlet(strike, self._made.extend, writing=True)
        self._records = RecordFaults(self._outlet)
        self._read = b""

    def start_write(self, fd: int, data: bytes, done: Done, *, limit: float, what: str) -> Transfer:
        kind, _length = _begins(data)
        if kind is None:
            return fd_io.start_write(fd, data, done, limit=limit, what=what)
        pace, after, mangling = Pace(), 0.0, []
        for firing in list(self._strike(record_point("libxl", kind.name, Moment.WRITE))):
            action = firing.fault.action
            if action.kind in _MANGLE:
                mangling.append(firing)
            elif action.kind is actions.STALL:
                after += limit + 1 if action.value is None else float(action.value)
            elif not pace.take(action):
                end = ending(action, writing=True)
                if end.shut:
                    shut(fd)
                raise _failure(end.errnoval, firing)
        data = self._mangled(data, mangling)
        if data and pace.free and not after:
            return fd_io.start_write(fd, data, done, limit=limit, what=what)
        return _Work(_write(fd, data, pace, after, limit, what), done)

    async def read_exactly(self, fd: int, size: int, *, limit: float, what: str) -> bytes:
        while len(self._read) < size:
            left = size - len(self._read)
            if self._read or size != HEADER_SIZE:
                self._read += await fd_io.read_exactly(fd, left, limit=limit, what=what)
            else:
                self._read = await self._record(fd, limit, what)
        data, self._read = self._read[:size], self._read[size:]
        return data

    async def _record(self, fd: int, limit: float, what: str) -> bytes:
        """A whole record, or what faults make of it; empty if it is dropped."""
        header = await fd_io.read_exactly(fd, HEADER_SIZE, limit=limit, what=what)
        kind, length = _begins(header)
        if kind is None or length > _LONGEST:
            return header
        size = length + padding(length)
        data = header + await fd_io.read_exactly(fd, size, limit=limit, what=what)
        mangling = []
        for firing in list(self._strike(record_point("libxl", kind.name, Moment.READ))):
            action = firing.fault.action
            if action.kind in _MANGLE:
                mangling.append(firing)
            elif action.kind is actions.STALL:
                await _stall(action.value, limit, what)
            elif action.kind is actions.TRICKLE:
                await asyncio.sleep(len(data) / int(action.value or 1))
            elif action.kind is not actions.SHORT_WRITES:  # a reader puts short pieces together
                end = ending(action, writing=False)
                if not end.errnoval:
                    raise fd_io.UnexpectedEnd(f"{what}: the stream ends: fault: {firing.fault}")
                raise _failure(end.errnoval, firing)
        return self._mangled(data, mangling)

    def _mangled(self, data: bytes, firings: list[Firing]) -> bytes:
        """What passes in the place of the record `data`."""
        header = self._records.begin(firings, data[:HEADER_SIZE], len(data))
        self._outlet.pass_on(header + data[HEADER_SIZE:])
        self._records.end()
        made = bytes(self._made)
        self._made.clear()
        return made


def _begins(data: bytes) -> tuple[RecordType | None, int]:
    """The type (None if unknown) and the body's length in the header that `data` begins with."""
    number, length = HEADER.unpack_from(data)
    return (RecordType(number) if number in set(RecordType) else None), length


async def _write(fd: int, data: bytes, pace: Pace, after: float, limit: float, what: str) -> None:
    await asyncio.sleep(min(after, limit))
    if after > limit:
        raise _timed_out(f"the stream stands still: nothing was taken for {limit:g} s")
    for piece, pause in pace.pieces(data):
        await fd_io.write_all(fd, piece, limit=limit, what=what)
        await asyncio.sleep(pause)


async def _stall(value: float | int | str | None, limit: float, what: str) -> None:
    """Raises TimeoutError, as a read does, if the stall exceeds the limit."""
    seconds = None if value is None else float(value)
    await asyncio.sleep(limit if seconds is None else min(seconds, limit))
    if seconds is None or seconds > limit:
        raise _timed_out(f"{what}: the other side has sent nothing for {limit:g} s")


def _failure(errnoval: int, firing: Firing) -> OSError:
    return OSError(errnoval, f"{os.strerror(errnoval)} (fault: {firing.fault})")


def _timed_out(text: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, text)
