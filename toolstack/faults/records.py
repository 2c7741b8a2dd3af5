"""Faults in the records of the libxl stream, which the controller writes and reads.

They do not pass a relay as libxc's do: the helper works on the same descriptor in between, and a
write that fails belongs to a record, even to the last one, which no other follows.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.octets import BrokenError, Octets, Step
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.points import Moment, record_point
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE, padding
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.seams import StreamSeam, Transfer

_LONGEST: Final = 1 << 24
"""Bytes of the longest body that is read as a whole."""


class RecordSeam(StreamSeam):
    def __init__(self, striker: Striker) -> None:
        self._written = Octets(striker)
        self._taken = Octets(striker, writing=False)
        self._read = b""

    def start_write(
        self,
        fd: int,
        data: bytes,
        done: Callable[[Exception | None], None],
        *,
        limit: float,
        what: str,
    ) -> Transfer:
        try:
            steps = _steps(self._written, data, Moment.WRITE)
        except BrokenError as broken:
            if broken.shut:
                shut(fd)
            raise _error(broken, what) from None
        if len(steps) == 1 and not steps[0][1]:
            return fd_io.start_write(fd, steps[0][0], done, limit=limit, what=what)
        write = partial(fd_io.write_all, fd, limit=limit, what=what)

        async def work() -> None:
            try:
                await _pass(steps, write, limit, "the stream stands still: nothing was taken")
            except OSError as error:
                done(error)
            else:
                done(None)

        return spawn(work())

    async def read_exactly(self, fd: int, size: int, *, limit: float, what: str) -> bytes:
        while len(self._read) < size:
            left = size - len(self._read)
            if self._read or size != HEADER_SIZE:
                self._read += await fd_io.read_exactly(fd, left, limit=limit, what=what)
            else:
                await self._record(fd, limit, what)
        data, self._read = self._read[:size], self._read[size:]
        return data

    async def _record(self, fd: int, limit: float, what: str) -> None:
        """Read a whole record, or what faults make of it: nothing if it is dropped."""
        data = await fd_io.read_exactly(fd, HEADER_SIZE, limit=limit, what=what)
        kind, length = _begins(data)
        if kind is None or length > _LONGEST:
            self._read = data
            return
        size = length + padding(length)
        data += await fd_io.read_exactly(fd, size, limit=limit, what=what)
        try:
            steps = _steps(self._taken, data, Moment.READ)
        except BrokenError as broken:
            raise _error(broken, what) from None
        await _pass(steps, self._keep, limit, f"{what}: the other side has sent nothing")

    async def _keep(self, piece: bytes) -> None:
        self._read += piece


def _steps(octets: Octets, data: bytes, moment: Moment) -> list[Step]:
    """The steps in which `data` passes, a record or a stream's header. Raises BrokenError."""
    kind, _length = _begins(data)
    if kind is None:
        return [*octets.passes(data)]
    point = record_point("libxl", kind.name, moment)
    return [*octets.strike(point), *octets.passes(data), *octets.end_record()]


def _begins(data: bytes) -> tuple[RecordType | None, int]:
    """The type (None if unknown) and the body's length in the header that `data` begins with."""
    number, length = HEADER.unpack_from(data)
    return (RecordType(number) if number in set(RecordType) else None), length


def _error(broken: BrokenError, what: str) -> Exception:
    """As a write or a read says it."""
    if not broken.errnoval:
        return fd_io.UnexpectedEnd(f"{what}: the stream ends: {broken}")
    return OSError(broken.errnoval, f"{os.strerror(broken.errnoval)} ({broken})")


async def _pass(
    steps: Iterable[Step], write: Callable[[bytes], Awaitable[None]], limit: float, still: str
) -> None:
    """Raises TimeoutError, as a write or read does, if a stall exceeds the limit."""
    for piece, pause in steps:
        await write(piece)
        await asyncio.sleep(min(pause, limit))
        if pause > limit:
            raise TimeoutError(errno.ETIMEDOUT, f"{still} for {limit:g} s")
