"""The points of messages that both channels share: what is sent, and what is answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, Protocol

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.message_faults import Mangle, Outgoing
from xen_save_helper.helper.faults.session import Session
from xen_save_helper.ipc_schema.faults.actions import ANSWER, DROP, FAIL, HANG_UP
from xen_save_helper.ipc_schema.faults.points import Moment, message_point


class Ends(Protocol):
    """How a channel ends itself. Both raise ChannelError."""

    def fail(self, errnoval: int, reason: str) -> NoReturn: ...

    def hang_up(self, reason: str) -> NoReturn: ...


class MessagePoints:
    """The points of one channel; `mangles` belong to its encoding."""

    def __init__(self, session: Session, mangles: Mapping[str, Mangle], ends: Ends) -> None:
        self._session = session
        self._ends = ends
        self._outgoing: Outgoing[str] = Outgoing(mangles)

    def send(self, name: str, data: bytes, transmit: Callable[[str, bytes], None]) -> None:
        """Send the message `name`, or what faults make of it."""
        going = self._outgoing.instead(name, data, self._strike(name, Moment.BEFORE_SEND))
        if going is None:
            return
        for its_name, message in going:
            transmit(its_name, message)
        for firing in self._strike(name, Moment.AFTER_SEND):
            raise AssertionError(firing)

    def calling(self, name: str) -> None:
        """The callback `name` is about to be made. Raises OSError if the streams fail before."""
        self._session.calling(name)

    def answer(self, name: str, value: int) -> int | None:
        """What to take in the place of the answer `value` to `name`; None for nothing."""
        taken: int | None = value
        for firing in self._strike(name, Moment.BEFORE_ANSWER):
            if firing.fault.action.kind is DROP:
                taken = None
            elif firing.fault.action.kind is ANSWER:
                taken = int(firing.fault.action.value or 0)
        return taken

    def taken(self, name: str) -> None:
        """The answer to `name` is taken. Raises OSError if the callback is to fail."""
        self._session.answered(name)
        for firing in self._session.strike(message_point(name, Moment.AFTER_ANSWER)):
            if firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(f"fault: {firing.fault}")
            raise firing.error()

    def _strike(self, name: str, moment: Moment) -> list[Firing]:
        """The firings other than those that end the channel, which are carried out."""
        left = []
        for firing in self._session.strike(message_point(name, moment)):
            reason = f"fault: {firing.fault}"
            if firing.fault.action.kind is FAIL:
                self._ends.fail(firing.errnoval, reason)
            if firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(reason)
            left.append(firing)
        return left
