"""The points of messages: on the channels of both ends, and in the handshake of two controllers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import Mangle, mangled
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.actions import ANSWER, DROP, FAIL, HANG_UP, REORDER
from xen_save_helper.ipc_schema.faults.points import Moment, message_point


class ChannelEnds(Protocol):
    """How a channel fails or ends itself; both raise what its seam may raise."""

    def fail(self, firing: Firing) -> None: ...

    def hang_up(self, firing: Firing) -> None:
        """Close the channel. May return."""


class MessagePoints:
    """The points of one channel; `mangles` belong to its encoding. `settle` waits until what was
    sent has left the process; `point` makes the name of a message's point."""

    def __init__(
        self,
        striker: Striker,
        mangles: Mapping[str, Mangle],
        ends: ChannelEnds,
        settle: Callable[[], None] = lambda: None,
        point: Callable[[str, Moment], str] = message_point,
    ) -> None:
        self._striker = striker
        self._mangles = mangles
        self._ends = ends
        self._settle = settle
        self._point = point
        self._held: list[bytes] = []

    def strike(self, name: str, moment: Moment) -> list[Firing]:
        """Pass a point of the message `name`. Returns what fires, after it has been carried out as
        far as it ends the channel."""
        fired = []
        for firing in self._striker.strike(self._point(name, moment)):
            if firing.fault.action.kind is FAIL:
                self._ends.fail(firing)
            elif firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(firing)
            fired.append(firing)
        return fired

    def sending(self, name: str, data: bytes, firings: Iterable[Firing] = ()) -> list[bytes] | None:
        """What is to be sent in the place of the message `name`, which is `data`: what `firings`
        and its own faults make of it. None for one that is to be reordered, and follows the
        next."""
        messages, waits = [data], False
        for firing in (*firings, *self.strike(name, Moment.BEFORE_SEND)):
            if firing.fault.action.kind is REORDER:
                waits = True
            elif firing.fault.action.kind is not HANG_UP:
                messages = mangled(self._mangles, messages, firing)
        if waits:
            self._held += messages
            return None
        held, self._held = self._held, []
        return messages + held

    def send(
        self,
        name: str,
        data: bytes,
        transmit: Callable[[bytes], None],
        firings: Iterable[Firing] = (),
    ) -> None:
        """Transmit the message `name` with its faults (see `sending`)."""
        messages = self.sending(name, data, firings)
        if messages is not None:
            for one in messages:
                transmit(one)
            self.sent(name)

    def sent(self, name: str) -> None:
        """The message `name` was sent."""
        if self._striker.has(self._point(name, Moment.AFTER_SEND)):
            self._settle()
            self.strike(name, Moment.AFTER_SEND)


class CallbackPoints(MessagePoints):
    """The points of a helper's channel, which makes callbacks and takes their answers."""

    def __init__(
        self,
        striker: Striker,
        streams: Streams,
        mangles: Mapping[str, Mangle],
        ends: ChannelEnds,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(striker, mangles, ends, settle)
        self._streams = streams

    def call(self, name: str, make: Callable[[], int]) -> int:
        """Make the callback `name`. Raises OSError if the streams fail before it, or if it is to
        fail."""
        self._streams.calling(name)
        value = make()
        self._streams.answered(name)
        for firing in self._striker.strike(message_point(name, Moment.AFTER_ANSWER)):
            if firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(firing)
            raise firing.error()
        return value

    def answer(self, name: str, value: int) -> int | None:
        """What is taken in the place of the answer `value` to `name`; None for nothing."""
        taken: int | None = value
        for firing in self.strike(name, Moment.BEFORE_ANSWER):
            if firing.fault.action.kind is DROP:
                taken = None
            elif firing.fault.action.kind is ANSWER:
                taken = int(firing.fault.action.value or 0)
        return taken
