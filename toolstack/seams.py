"""The places where faults get into libxl's side. These have none; `toolstack.faults.controller` has
those of a plan."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.toolstack.aio import fd_io

if TYPE_CHECKING:
    from xen_save_helper.toolstack.helpers.channel import ChannelListener, HelperChannel

T = TypeVar("T")


class Transfer(Protocol):
    """A write that is under way."""

    def cancel(self) -> object:
        """Stop it, without calling `done`."""


class StreamSeam:
    """The libxl stream: its header, then for each record one write, or one read of its header and
    one of its padded body."""

    def start_write(
        self,
        fd: int,
        data: bytes,
        done: Callable[[Exception | None], None],
        *,
        limit: float,
        what: str,
    ) -> Transfer:
        """See `fd_io.start_write`. Raises OSError."""
        return fd_io.start_write(fd, data, done, limit=limit, what=what)

    async def read_exactly(self, fd: int, size: int, *, limit: float, what: str) -> bytes:
        """See `fd_io.read_exactly`."""
        return await fd_io.read_exactly(fd, size, limit=limit, what=what)


class HandshakeSeam:
    """The handshake of two controllers. `ends` are our descriptors of the link."""

    async def say(
        self,
        ends: tuple[int, int],
        message: HandshakeMessage,
        data: bytes,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        """Say `message`, which is `data`. Raises OSError, and what `write` raises."""
        await write(data)

    async def hear(
        self,
        ends: tuple[int, int],
        message: HandshakeMessage,
        read: Callable[[], Awaitable[T]],
    ) -> T:
        """Hear `message`. Raises OSError, and what `read` raises."""
        return await read()


class Seams:
    """The seams of an operation, at all places where a plan may have faults."""

    stream = StreamSeam()
    handshake = HandshakeSeam()

    def begin(self, operation: Operation) -> None:
        """Note that this process is about to do its side of `operation`."""

    def open_zmq(
        self, operation: Operation, provided: frozenset[str], listener: ChannelListener
    ) -> HelperChannel:
        """See `helpers.launch.open_zmq`."""
        from xen_save_helper.toolstack.helpers.launch import open_zmq

        return open_zmq(operation, provided, listener)
