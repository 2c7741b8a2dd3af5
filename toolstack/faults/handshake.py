"""Faults in the messages of a migration's handshake."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple, NoReturn, TypeVar

from xen_save_helper.helper.faults.descriptors import end
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import ON_LINK
from xen_save_helper.helper.faults.message_points import MessagePoints
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.actions import DROP
from xen_save_helper.ipc_schema.faults.points import Moment, handshake_point
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.toolstack.seams import HandshakeSeam

T = TypeVar("T")


class _Ends(NamedTuple):
    """Our descriptors of the link, on which `message` is said or heard."""

    fds: tuple[int, int]
    message: HandshakeMessage

    def fail(self, firing: Firing) -> NoReturn:
        text = f"{self.message.what}: {os.strerror(firing.errnoval)} ({firing.reason})"
        raise OSError(firing.errnoval, text)

    def hang_up(self, firing: Firing) -> None:
        del firing
        for fd in self.fds:
            end(fd)


class HandshakeFaults(HandshakeSeam):
    def __init__(self, striker: Striker) -> None:
        self._striker = striker

    async def say(
        self,
        ends: tuple[int, int],
        message: HandshakeMessage,
        data: bytes,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        points = self._points(ends, message)
        if data := b"".join(points.sending(message.name, data) or ()):
            await write(data)
        points.sent(message.name)

    async def hear(
        self, ends: tuple[int, int], message: HandshakeMessage, read: Callable[[], Awaitable[T]]
    ) -> T:
        """After a dropped message, raises what `read` raises for the next: nobody repeats it."""
        while True:
            heard = await read()
            fired = self._points(ends, message).strike(message.name, Moment.HEARD)
            if not any(firing.fault.action.kind is DROP for firing in fired):
                return heard

    def _points(self, ends: tuple[int, int], message: HandshakeMessage) -> MessagePoints:
        return MessagePoints(self._striker, ON_LINK, _Ends(ends, message), point=handshake_point)
