"""Faults in what the controllers of a migration say to each other around the stream."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Final, TypeVar

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.points import Moment, handshake_point
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.toolstack.faults.controller import ControllerFaults
from xen_save_helper.toolstack.faults.records import shut

T = TypeVar("T")

_MANGLES: Final[dict[str, Callable[[bytes, Random], bytes]]] = {
    actions.DROP.name: lambda _data, _random: b"",
    actions.DUPLICATE.name: lambda data, _random: data * 2,
    actions.TRUNCATE.name: lambda data, _random: data[: len(data) // 2],
    actions.GARBAGE.name: lambda data, random: random.randbytes(len(data)),
}


class HandshakeFaults:
    """`say` and `hear` stand in the place of what is done without faults. `ends` are the
    controller's descriptors of the link."""

    def __init__(self, faults: ControllerFaults, ends: Sequence[int]) -> None:
        self._faults = faults
        self._ends = ends

    async def say(
        self, message: HandshakeMessage, data: bytes, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Raises OSError, and what `write` raises."""
        for firing in self._strike(message, Moment.BEFORE_SEND):
            kind = firing.fault.action.kind
            if kind is actions.FAIL:
                raise _failure(message, firing)
            if kind is actions.HANG_UP:
                self._hang_up()
            else:
                data = _MANGLES[kind.name](data, firing.random)
        if data:
            await write(data)
        for firing in self._strike(message, Moment.AFTER_SEND):
            assert firing.fault.action.kind is actions.HANG_UP
            self._hang_up()

    async def hear(self, message: HandshakeMessage, read: Callable[[], Awaitable[T]]) -> T:
        """Raises OSError, and what `read` raises: also in the place of a message that is dropped,
        since nobody says it again."""
        while True:
            heard = await read()
            dropped = False
            for firing in self._strike(message, Moment.HEARD):
                kind = firing.fault.action.kind
                if kind is actions.FAIL:
                    raise _failure(message, firing)
                if kind is actions.HANG_UP:
                    self._hang_up()
                else:
                    assert kind is actions.DROP
                    dropped = True
            if not dropped:
                return heard

    def _strike(self, message: HandshakeMessage, moment: Moment) -> list[Firing]:
        return list(self._faults.strike(handshake_point(message.name, moment)))

    def _hang_up(self) -> None:
        for fd in self._ends:
            _end(fd)


def _failure(message: HandshakeMessage, firing: Firing) -> OSError:
    number = int(getattr(errno, str(firing.fault.action.value)))
    text = f"{message.what}: {os.strerror(number)} (fault: {firing.fault})"
    return OSError(number, text)


def _end(fd: int) -> None:
    """What was written can still be read there. The number stays in use: its owner closes it."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        shut(fd)
        return
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
