"""The link between two controllers: reads and writes the messages of the handshake."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, TypeVar

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage, Verdict
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.aio.patience import never, patience
from xen_save_helper.toolstack.context import Context

T = TypeVar("T")

_MOST_READ: Final = 64 << 20
"""Bytes: more than the POSTCOPY_FAULT records of any guest, which come before SYNC."""


class LinkError(OSError):
    """The other side said something else (EPROTO), nothing (ETIMEDOUT), or has gone (EPIPE,
    ECONNRESET); or the link failed otherwise."""


async def read_exactly(
    fd: int, size: int, limit: float, what: str, stopped: Callable[[], bool] = never
) -> bytes:
    """Read `size` bytes of `what`. Raises LinkError at end of file, and if they have not come
    within `limit` seconds, without the time in which the other side is `stopped`."""
    try:
        async with patience(limit, stopped):
            return await fd_io.read_exactly(fd, size, limit=0, what=what)
    except TimeoutError:
        raise LinkError(errno.ETIMEDOUT, f"{what} did not come within {limit:g} s") from None
    except EOFError:
        text = f"the other side closed the link before {what}"
        raise LinkError(errno.EPIPE, text) from None
    except OSError as error:
        raise LinkError(error.errno, f"cannot receive {what}: {error.strerror}") from error


async def read_to_end(fd: int, limit: float) -> bytes:
    """Read until the other side closes the link, the link breaks, or nothing comes for `limit`
    seconds; at most the first 64 MiB."""
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(data: bytes, _error: Exception | None) -> None:
        if not came.done():
            came.set_result(data)

    transfer = fd_io.start_read(fd, _MOST_READ, done, limit=limit)
    try:
        return await came
    finally:
        transfer.cancel()


async def read_message(
    fd: int, message: bytes, limit: float, what: str, stopped: Callable[[], bool] = never
) -> None:
    """Read one fixed message. Raises LinkError for anything else."""
    data = await read_exactly(fd, len(message), limit, what, stopped)
    if data != message:
        raise LinkError(errno.EPROTO, f"the other side sent {data[:40]!r} instead of {what}")


async def write_all(
    fd: int, data: bytes, limit: float, what: str, stopped: Callable[[], bool] = never
) -> None:
    """Write `data`. Raises LinkError if the other side is gone, or has not taken it within `limit`
    seconds."""
    try:
        async with patience(limit, stopped):
            await fd_io.write_all(fd, data, limit=0, what=what)
    except TimeoutError:
        text = f"the other side did not take {what} within {limit:g} s"
        raise LinkError(errno.ETIMEDOUT, text) from None
    except OSError as error:
        raise LinkError(error.errno, f"cannot send {what}: {error.strerror}") from error


class HandshakeLink:
    """Says and hears messages of the handshake, each within the limit `handshake`. The descriptors
    stay the caller's. All methods raise LinkError if the other side has gone, or says nothing or
    something else."""

    def __init__(
        self,
        ctx: Context,
        operation: Operation,
        hears: int,
        says: int,
        stopped: Callable[[], bool],
    ) -> None:
        """`operation` is that of our side, which reads from the descriptor `hears` and writes to
        `says`. `stopped` tells whether the other side is stopped, if that can be seen."""
        self._stopped = stopped
        self._hears = hears
        self._says = says
        self._limit = ctx.limits.handshake
        self._trace = ctx.trace
        ctx.seams.begin(operation)
        self._seam = ctx.seams.handshake

    async def say(self, message: HandshakeMessage, data: bytes | None = None) -> None:
        """Write a message; `data` if it is more than its fixed bytes."""
        write = partial(self._write, message.what)
        whole = message.data if data is None else data
        self._trace.event("handshake_said", message=message.name)
        await self._seam.say((self._hears, self._says), message, whole, write)

    async def hear(self, message: HandshakeMessage, limit: float | None = None) -> None:
        """Read a message of fixed bytes, within `limit` seconds, or `handshake` if that is None."""
        await self.hear_by(message, partial(self._read, message, limit))

    async def hear_code(self, message: HandshakeMessage, limit: float) -> int:
        """Read a message, within `limit` seconds, and return the byte behind it."""

        async def read() -> int:
            await self._read(message, limit)
            what = f"the byte behind {message.what}"
            (code,) = await read_exactly(self._hears, 1, self._limit, what, self._stopped)
            return code

        return await self.hear_by(message, read)

    async def hear_verdict(self) -> Verdict:
        """Read a verdict. Also raises DecodeError if it is out of bounds."""
        message = xl_handshake.VERDICT

        async def read() -> Verdict:
            await self._read(message)
            what = f"the rest of {message.what}"
            read = partial(read_exactly, self._hears, limit=self._limit, what=what)
            rc, length = xl_handshake.decode_verdict_head(await read(xl_handshake.VERDICT_SIZE))
            return Verdict(rc, xl_handshake.decode_reason(await read(length)))

        return await self.hear_by(message, read)

    async def hear_by(self, message: HandshakeMessage, read: Callable[[], Awaitable[T]]) -> T:
        """Read a message by `read`, and return what that returns."""
        heard = await self._seam.hear((self._hears, self._says), message, read)
        self._trace.event("handshake_heard", message=message.name)
        return heard

    async def _read(self, message: HandshakeMessage, limit: float | None = None) -> None:
        await read_message(
            self._hears, message.data, limit or self._limit, message.what, self._stopped
        )

    async def _write(self, what: str, data: bytes) -> None:
        await write_all(self._says, data, self._limit, what, self._stopped)
