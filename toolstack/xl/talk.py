"""One side's end of the link between two controllers: the handshake's messages, said and heard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage, Verdict
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.xl import link

if TYPE_CHECKING:
    from xen_save_helper.toolstack.faults.handshake import HandshakeFaults

T = TypeVar("T")


class Talk:
    """Each message within the limit `handshake`. The descriptors stay the caller's; all methods
    raise LinkError where the other side has gone, says nothing or something else."""

    def __init__(
        self,
        ctx: Context,
        operation: Operation,
        hears: int,
        says: int,
        stopped: Callable[[], bool],
    ) -> None:
        """`operation` tells the side; it hears from the descriptor `hears`, and says on `says`.
        `stopped`: whether the other side stands still, where that can be seen."""
        self._stopped = stopped
        self._hears = hears
        self._says = says
        self._limit = ctx.limits.handshake
        self._faults: HandshakeFaults | None = None
        if ctx.faults is not None:
            ctx.faults.begin(operation)
            self._faults = ctx.faults.handshake((hears, says))

    async def say(self, message: HandshakeMessage, data: bytes | None = None) -> None:
        """`data` where the message is more than its fixed octets."""
        write = partial(self._write, message.what)
        octets = message.octets if data is None else data
        if self._faults is None:
            await write(octets)
        else:
            await self._faults.say(message, octets, write)

    async def hear(self, message: HandshakeMessage, limit: float | None = None) -> None:
        """Raises LinkError for other octets. `limit` in seconds, None for `handshake`."""
        await self.hear_by(message, partial(self._read, message, limit))

    async def hear_code(self, message: HandshakeMessage) -> int:
        """As `hear`, and the octet behind it."""

        async def read() -> int:
            await self._read(message)
            what = f"the octet behind {message.what}"
            (code,) = await link.read_exactly(self._hears, 1, self._limit, what, self._stopped)
            return code

        return await self.hear_by(message, read)

    async def hear_verdict(self) -> Verdict:
        """Raises DecodeError besides, for a verdict that is out of its bounds."""
        message = xl_handshake.VERDICT

        async def read() -> Verdict:
            await self._read(message)
            what = f"the rest of {message.what}"
            read = partial(link.read_exactly, self._hears, limit=self._limit, what=what)
            rc, length = xl_handshake.decode_verdict_head(await read(xl_handshake.VERDICT_SIZE))
            return Verdict(rc, xl_handshake.decode_reason(await read(length)))

        return await self.hear_by(message, read)

    async def hear_by(self, message: HandshakeMessage, read: Callable[[], Awaitable[T]]) -> T:
        """A message that `read` reads, whose errors are raised."""
        if self._faults is None:
            return await read()
        return await self._faults.hear(message, read)

    async def _read(self, message: HandshakeMessage, limit: float | None = None) -> None:
        await link.read_message(
            self._hears, message.octets, limit or self._limit, message.what, self._stopped
        )

    async def _write(self, what: str, octets: bytes) -> None:
        await link.write_all(self._says, octets, self._limit, what, self._stopped)
