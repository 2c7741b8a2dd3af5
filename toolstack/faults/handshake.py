"""Faults in the messages of a migration's handshake."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
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
        for firing in list(self._strike(handshake_point(message.name, Moment.BEFORE_SEND))):
            if not _ended(message, firing, ends):
                messages = mangled(ON_LINK, messages, firing)
        if data := b"".join(messages):
            await write(data)
        for firing in list(self._strike(handshake_point(message.name, Moment.AFTER_SEND))):
            assert _ended(message, firing, ends)

    async def hear(
        self, ends: tuple[int, int], message: HandshakeMessage, read: Callable[[], Awaitable[T]]
    ) -> T:
        """After a dropped message, raises what `read` raises for the next: nobody repeats it."""
        while True:
            heard = await read()
            dropped = False
            for firing in list(self._strike(handshake_point(message.name, Moment.HEARD))):
                if not _ended(message, firing, ends):
                    assert firing.fault.action.kind is actions.DROP
                    dropped = True
            if not dropped:
                return heard


def _ended(message: HandshakeMessage, firing: Firing, ends: Sequence[int]) -> bool:
    """Whether the firing has ended the link. Raises OSError for a message that is to fail."""
    kind = firing.fault.action.kind
    if kind is actions.FAIL:
        text = f"{message.what}: {os.strerror(firing.errnoval)} (fault: {firing.fault})"
        raise OSError(firing.errnoval, text)
    if kind is not actions.HANG_UP:
        return False
    for fd in ends:
        # The other side can still read what was written.
        if not shut(fd):
            hollow(fd)
    return True
