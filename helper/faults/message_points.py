"""The points of messages, which the channels of both ends share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, Protocol, TypeVar

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import Mangle, mangled
from xen_save_helper.helper.faults.session import Session
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.actions import ANSWER, DROP, FAIL, HANG_UP, REORDER
from xen_save_helper.ipc_schema.faults.points import Moment, message_point

S = TypeVar("S", bound=Striker)


class ChannelEnds(Protocol):
    """How a channel fails or ends itself; both raise what its seam may raise."""

    def fail(self, firing: Firing) -> None: ...

    def hang_up(self, firing: Firing) -> None:
        """Close the channel. May return."""


class MessagePoints(Generic[S]):
    """The points of one channel; `mangles` belong to its encoding. `settle` waits until what was
    transmitted has left the process."""

    def __init__(
        self,
        striker: S,
        mangles: Mapping[str, Mangle],
        ends: ChannelEnds,
        settle: Callable[[], None] = lambda: None,
    ) -> None:
        self._striker = striker
        self._mangles = mangles
        self._ends = ends
        self._settle = settle
        self._held: list[Callable[[], None]] = []

    def strike(self, name: str, moment: Moment) -> list[Firing]:
        """Pass a point of the message `name`. Returns what fires, after it has been carried out as
        far as it ends the channel."""
        fired = []
        for firing in self._striker.strike(message_point(name, moment)):
            if firing.fault.action.kind is FAIL:
                self._ends.fail(firing)
            elif firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(firing)
            fired.append(firing)
        return fired

    def send(
        self,
        name: str,
        data: bytes,
        transmit: Callable[[bytes], None],
        firings: Iterable[Firing] = (),
    ) -> None:
        """Transmit the message `name`, or what `firings` and its own faults make of it; one that is
        to be reordered follows the next."""
        messages, held = [data], False
        for firing in (*firings, *self.strike(name, Moment.BEFORE_SEND)):
            if firing.fault.action.kind is REORDER:
                held = True
            elif firing.fault.action.kind is not HANG_UP:
                messages = mangled(self._mangles, messages, firing)
        going: list[Callable[[], None]] = [partial(transmit, one) for one in messages]
        if held:
            self._held += going
            return
        going += self._held
        self._held = []
        for send in going:
            send()
        if self._striker.has(message_point(name, Moment.AFTER_SEND)):
            self._settle()
            self.strike(name, Moment.AFTER_SEND)


class CallbackPoints(MessagePoints[Session]):
    """The points of a helper's channel, which makes callbacks and takes their answers."""

    asked = ""
    """The callback that is being made, "" if none is."""

    def call(self, name: str, make: Callable[[], int]) -> int:
        """Make the callback `name`. Raises OSError if the streams fail before it, or if it is to
        fail."""
        self._striker.streams.calling(name)
        self.asked = name
        value = make()
        self.asked = ""
        self._striker.streams.answered(name)
        for firing in self._striker.strike(message_point(name, Moment.AFTER_ANSWER)):
            if firing.fault.action.kind is HANG_UP:
                self._ends.hang_up(firing)
            raise firing.error()
        return value

    def answer(self, value: int) -> int | None:
        """What is taken in the place of the answer `value` to the callback; None for nothing."""
        taken: int | None = value
        for firing in self.strike(self.asked, Moment.BEFORE_ANSWER):
            if firing.fault.action.kind is DROP:
                taken = None
            elif firing.fault.action.kind is ANSWER:
                taken = int(firing.fault.action.value or 0)
        return taken
