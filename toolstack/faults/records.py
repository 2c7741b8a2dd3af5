"""Faults in the records of the libxl stream, which the controller writes and reads."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from random import Random
from struct import Struct
from typing import Final

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.points import Moment, record_point
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, padding
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.faults.controller import ControllerFaults

Done = Callable[[Exception | None], None]
Read = Callable[[int, str], Awaitable[bytes]]

_HEADER: Final = Struct("<II")
_NO_SUCH_TYPE: Final = 0x7FFF_FFFF
_OVERSIZE: Final = 0xFFFF_FFF8
_LONGEST: Final = 1 << 24
"""Octets of a body that is still taken in whole."""
_PIECES_A_SECOND: Final = 50
_ERRNOS: Final = {
    actions.EPIPE.name: errno.EPIPE,
    actions.ENOSPC.name: errno.ENOSPC,
    actions.RESET.name: errno.ECONNRESET,
    actions.CUT.name: errno.EPIPE,
}


class PacedWrite:
    """A write that begins late, or goes on in pieces. `cancel` as that of fd_io.Transfer."""

    def __init__(
        self,
        fd: int,
        data: bytes,
        done: Done,
        *,
        limit: float,
        what: str,
        after: float,
        piece: int,
        pause: float,
    ) -> None:
        """`after` and `pause` in seconds, `piece` in octets."""
        self._task = spawn(self._write(fd, data, limit, what, after, piece, pause))
        self._done = done
        self._task.add_done_callback(self._over)

    def cancel(self) -> None:
        self._task.cancel()

    async def _write(
        self, fd: int, data: bytes, limit: float, what: str, after: float, piece: int, pause: float
    ) -> None:
        await asyncio.sleep(after)
        for start in range(0, len(data), piece):
            await fd_io.write_all(fd, data[start : start + piece], limit=limit, what=what)
            await asyncio.sleep(pause)

    def _over(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        self._done(error)


class RecordFaults:
    """`start_write` and `octets` stand in the place of what is done without faults."""

    def __init__(self, faults: ControllerFaults) -> None:
        self._faults = faults
        self._held = b""
        self._read = b""

    # Writing

    def start_write(
        self, record: RecordType, fd: int, data: bytes, done: Done, *, limit: float, what: str
    ) -> fd_io.Transfer | PacedWrite:
        """fd_io.start_write of a record, or of what faults make of it. Raises OSError."""
        after, piece, pause = 0.0, 0, 0.0
        held = False
        for firing in self._strike(record, Moment.WRITE):
            kind, value = firing.fault.action
            if kind.name in _ERRNOS:
                if kind in {actions.CUT, actions.RESET}:
                    shut(fd)
                raise _failure(_ERRNOS[kind.name], firing)
            if kind is actions.STALL:
                after += limit + 1 if value is None else float(value)
            elif kind is actions.TRICKLE:
                piece = max(1, int(value or 1) // _PIECES_A_SECOND)
                pause = piece / int(value or 1)
            elif kind is actions.SHORT_WRITES:
                piece = int(value or 1)
            elif kind is actions.REORDER:
                held = True
            else:
                data = _mangled(data, firing)
        if held:
            self._held, data = data, b""
        else:
            self._held, data = b"", data + self._held
        if after > limit:
            return PacedWrite(
                fd,
                b"",
                _stalled(done, limit),
                limit=limit,
                what=what,
                after=limit,
                piece=1,
                pause=0,
            )
        if after or piece or not data:
            size = piece or len(data) or 1
            return PacedWrite(
                fd, data, done, limit=limit, what=what, after=after, piece=size, pause=pause
            )
        return fd_io.start_write(fd, data, done, limit=limit, what=what)

    # Reading

    async def octets(self, read: Read, limit: float, size: int, what: str) -> bytes:
        """`read(size, what)`, where all the stream's records are read through here."""
        while len(self._read) < size:
            if self._read or size != HEADER_SIZE:
                self._read += await read(size - len(self._read), what)
            else:
                self._read = await self._record(read, limit, what)
        data, self._read = self._read[:size], self._read[size:]
        return data

    async def _record(self, read: Read, limit: float, what: str) -> bytes:
        """A record whole, or what faults make of it; empty for one that is dropped."""
        header = await read(HEADER_SIZE, what)
        number, length = _HEADER.unpack(header)
        if number not in set(RecordType) or length > _LONGEST:
            return header
        data = header + await read(length + padding(length), what)
        held = False
        for firing in self._strike(RecordType(number), Moment.READ):
            kind, value = firing.fault.action
            if kind is actions.CUT:
                raise fd_io.UnexpectedEnd(f"{what}: the stream ends: fault: {firing.fault}")
            if kind is actions.RESET:
                raise _failure(errno.ECONNRESET, firing)
            if kind is actions.STALL:
                await _stall(value, limit, what)
            elif kind is actions.TRICKLE:
                await asyncio.sleep(len(data) / int(value or 1))
            elif kind is actions.REORDER:
                held = True
            elif kind is not actions.SHORT_WRITES:  # a reader puts short pieces together
                data = _mangled(data, firing)
        if held:
            self._held = data
            return b""
        data, self._held = data + self._held, b""
        return data

    def _strike(self, record: RecordType, moment: Moment) -> list[Firing]:
        return list(self._faults.strike(record_point("libxl", record.name, moment)))


def _failure(errnoval: int, firing: Firing) -> OSError:
    return OSError(errnoval, f"{os.strerror(errnoval)} (fault: {firing.fault})")


async def _stall(value: float | int | str | None, limit: float, what: str) -> None:
    """Raises TimeoutError as a read does where nothing comes."""
    seconds = None if value is None else float(value)
    await asyncio.sleep(limit if seconds is None else min(seconds, limit))
    if seconds is None or seconds > limit:
        raise _timed_out(f"{what}: the other side has sent nothing for {limit:g} s")


def _stalled(done: Done, limit: float) -> Done:
    def late(error: Exception | None) -> None:
        done(error or _timed_out(f"the stream stands still: nothing was taken for {limit:g} s"))

    return late


def _timed_out(text: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, text)


def _mangled(data: bytes, firing: Firing) -> bytes:
    kind = firing.fault.action.kind
    if kind is actions.FLIP:
        return bytes((data[0] ^ 1 << int(firing.fault.action.value or 0),)) + data[1:]
    return _MANGLES[kind.name](data, firing.random)


def _renumbered(data: bytes, _random: Random) -> bytes:
    return _HEADER.pack(_NO_SUCH_TYPE, _HEADER.unpack_from(data)[1]) + data[HEADER_SIZE:]


def _oversized(data: bytes, _random: Random) -> bytes:
    return _HEADER.pack(_HEADER.unpack_from(data)[0], _OVERSIZE) + data[HEADER_SIZE:]


def _garbage(data: bytes, random: Random) -> bytes:
    """The body; of a record without one, all of it."""
    if len(data) > HEADER_SIZE:
        return data[:HEADER_SIZE] + random.randbytes(len(data) - HEADER_SIZE)
    return random.randbytes(len(data))


_MANGLES: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    actions.DROP.name: lambda _data, _random: b"",
    actions.DUPLICATE.name: lambda data, _random: data * 2,
    actions.TRUNCATE.name: lambda data, _random: data[: len(data) // 2],
    actions.GARBAGE.name: _garbage,
    actions.WRONG_NUMBER.name: _renumbered,
    actions.OVERSIZE.name: _oversized,
}


def shut(fd: int) -> None:
    """The other side sees the end, where this is a socket."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    with socket.socket(fileno=os.dup(fd)) as copy:
        try:
            copy.shutdown(socket.SHUT_RDWR)
        except OSError as bad:
            if bad.errno != errno.ENOTCONN:  # it has gone already
                raise
