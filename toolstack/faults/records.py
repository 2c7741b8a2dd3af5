"""Faults in the records of the libxl stream, which the controller writes and reads.

They do not pass a relay as libxc's do: the helper works on the same descriptor in between, and a
write that fails belongs to a record, even to the last one, which no other follows.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, NoReturn

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.injector import Firing, Strike
from xen_save_helper.helper.faults.outlet import Outlet, Pace, ending
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


class _Passage(NamedTuple):
    """What passes in the place of a record: `data`, in the pieces of `pace`, after `stall`
    seconds, which may exceed every limit."""

    data: bytes
    pace: Pace
    stall: float

    async def stand_still(self, limit: float, what: str) -> None:
        """Raises TimeoutError, as a write or read does, if the stall exceeds the limit."""
        await asyncio.sleep(min(self.stall, limit))
        if self.stall > limit:
            raise TimeoutError(errno.ETIMEDOUT, f"{what} for {limit:g} s")


class RecordSeam(StreamSeam):
    def __init__(self, strike: Strike) -> None:
        self._strike = strike
        self._made = bytearray()
        self._outlet = Outlet(strike, self._made.extend, writing=True)
        self._read = b""

    def start_write(self, fd: int, data: bytes, done: Done, *, limit: float, what: str) -> Transfer:
        kind, _length = _begins(data)
        if kind is not None:
            passage = self._pass(fd, kind, data, Moment.WRITE, what)
            if not passage.data or passage.stall or not passage.pace.free:
                return _start(_write(fd, passage, limit, what), done)
            data = passage.data
        return fd_io.start_write(fd, data, done, limit=limit, what=what)

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
        passage = self._pass(fd, kind, data, Moment.READ, what)
        await passage.stand_still(limit, f"{what}: the other side has sent nothing")
        # A reader puts short pieces together.
        await asyncio.sleep(sum(pause for _piece, pause in passage.pace.pieces(data)))
        return passage.data

    def _pass(self, fd: int, kind: RecordType, data: bytes, moment: Moment, what: str) -> _Passage:
        """Pass the point of the record `data`. Raises OSError and UnexpectedEnd, as a write or read
        does, for a fault that ends the stream."""
        pace, stall, mangling = Pace(), 0.0, []
        for firing in self._strike(record_point("libxl", kind.name, moment)):
            action = firing.fault.action
            if action.kind in actions.RECORD:
                mangling.append(firing)
            elif action.kind is actions.FLIP:
                self._outlet.do(firing)
            elif action.kind is actions.STALL:
                stall += float("inf") if action.value is None else float(action.value)
            elif not pace.take(action):
                _end(fd, firing, moment, what)
        self._outlet.begin_record(mangling)
        self._outlet.pass_on(data)
        self._outlet.end_record()
        made = bytes(self._made)
        self._made.clear()
        return _Passage(made, pace, stall)


def _begins(data: bytes) -> tuple[RecordType | None, int]:
    """The type (None if unknown) and the body's length in the header that `data` begins with."""
    number, length = HEADER.unpack_from(data)
    return (RecordType(number) if number in set(RecordType) else None), length


def _end(fd: int, firing: Firing, moment: Moment, what: str) -> NoReturn:
    writing = moment is Moment.WRITE
    broken = ending(firing.fault.action, writing=writing)
    if writing and broken.shut:
        shut(fd)
    if not broken.errnoval:
        raise fd_io.UnexpectedEnd(f"{what}: the stream ends: {firing.reason}")
    raise OSError(broken.errnoval, f"{os.strerror(broken.errnoval)} ({firing.reason})")


def _start(work: Coroutine[Any, Any, None], done: Done) -> Transfer:
    """Start a write that takes time."""

    def over(task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, Exception):
                raise error
            done(error)

    task = spawn(work)
    task.add_done_callback(over)
    return task


async def _write(fd: int, passage: _Passage, limit: float, what: str) -> None:
    await passage.stand_still(limit, "the stream stands still: nothing was taken")
    for piece, pause in passage.pace.pieces(passage.data):
        await fd_io.write_all(fd, piece, limit=limit, what=what)
        await asyncio.sleep(pause)
