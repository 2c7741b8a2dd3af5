"""Faults in the messages of a migration's handshake."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from xen_save_helper.helper.faults.descriptors import hollow, shut
from xen_save_helper.helper.faults.injector import Firing, Strike
from xen_save_helper.helper.faults.mangles import ON_LINK, mangled
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.points import Moment, handshake_point
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.toolstack.seams import HandshakeSeam

T = TypeVar("T")


class HandshakeFaults(HandshakeSeam):
    def __init__(self, strike: Strike) -> None:
        self._strike = strike

    async def say(
        self,
        ends: tuple[int, int],
        message: HandshakeMessage,
        data: bytes,
        write: Callable[[bytes], Awaitable[None]],
    ) -> None:
        messages = [data]
        for firing in self._strike_link(ends, message, Moment.BEFORE_SEND):
            messages = mangled(ON_LINK, messages, firing)
        if data := b"".join(messages):
            await write(data)
        self._strike_link(ends, message, Moment.AFTER_SEND)

    async def hear(
        self, ends: tuple[int, int], message: HandshakeMessage, read: Callable[[], Awaitable[T]]
    ) -> T:
        """After a dropped message, raises what `read` raises for the next: nobody repeats it."""
        while True:
            heard = await read()
            if not self._strike_link(ends, message, Moment.HEARD):
                return heard

    def _strike_link(
        self, ends: tuple[int, int], message: HandshakeMessage, moment: Moment
    ) -> list[Firing]:
        """Pass a point, and hang up if a firing says so; returns the others. Raises OSError for a
        message that is to fail."""
        left = []
        for firing in self._strike(handshake_point(message.name, moment)):
            if firing.fault.action.kind is actions.FAIL:
                text = f"{message.what}: {os.strerror(firing.errnoval)} ({firing.reason})"
                raise OSError(firing.errnoval, text)
            if firing.fault.action.kind is actions.HANG_UP:
                for fd in ends:
                    # The other side can still read what was written.
                    if not shut(fd):
                        hollow(fd)
            else:
                left.append(firing)
        return left
