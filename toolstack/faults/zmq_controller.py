"""The controller's end of the channel to our helper, with the points of its messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import zmq

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.echo import Echo
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.message_faults import ON_ZMQ, Outgoing
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.channel.messages import Message, Operation
from xen_save_helper.ipc_schema.faults.actions import ANSWER, DROP, FAIL, HANG_UP
from xen_save_helper.ipc_schema.faults.points import Moment, message_point
from xen_save_helper.toolstack.helpers.channel import ChannelListener
from xen_save_helper.toolstack.helpers.zmq_controller import ZmqController


class FaultyZmqController(ZmqController):
    def __init__(
        self,
        striker: Striker,
        operation: Operation,
        provided: frozenset[str],
        listener: ChannelListener,
    ) -> None:
        super().__init__(operation, provided, listener)
        self._striker = striker
        self._echo = Echo(self._context)
        self._of_answer: list[Firing] = []
        self._outgoing: Outgoing[tuple[str, bytes]] = Outgoing(ON_ZMQ)
        self._hung_up = False

    def close(self) -> None:
        self._echo.close()
        super().close()

    # What is said to the helper

    def answer(self, message: Message, value: int) -> None:
        self._of_answer = []
        for firing in self._strike(message.name, Moment.BEFORE_ANSWER, Firing.error):
            if firing.fault.action.kind is ANSWER:
                value = int(firing.fault.action.value or 0)
            else:
                self._of_answer.append(firing)
        try:
            super().answer(message, value)
        finally:
            self._of_answer = []
        self._struck(message.name, Moment.AFTER_ANSWER)

    def _seam_send(self, name: str, peer: bytes, data: bytes) -> None:
        firings = [*self._of_answer, *self._strike(name, Moment.BEFORE_SEND, _zmq_error)]
        going = self._outgoing.instead((name, peer), data, firings)
        if going is None:
            return
        for (its_name, its_peer), message in going:
            super()._seam_send(its_name, its_peer, message)
        if self._striker.has(message_point(name, Moment.AFTER_SEND)):
            self._echo.wait()
        self._struck(name, Moment.AFTER_SEND)

    # What the helper says

    def _seam_heard(self, message: Message, fields: dict[str, Any]) -> None:
        if not self._struck(message.name, Moment.HEARD):
            super()._seam_heard(message, fields)

    def _struck(self, name: str, moment: Moment) -> bool:
        """Whether anything fires at a point where nothing can fail or be changed."""
        struck = False
        for firing in self._striker.strike(message_point(name, moment)):
            if firing.fault.action.kind is HANG_UP:
                self._hang_up()
            else:
                assert firing.fault.action.kind is DROP
            struck = True
        return struck

    def _strike(
        self, name: str, moment: Moment, error: Callable[[Firing], Exception]
    ) -> Iterator[Firing]:
        """Hang up, or raise the `error` of a firing that is to fail; yield the others."""
        for firing in self._striker.strike(message_point(name, moment)):
            if firing.fault.action.kind is FAIL:
                raise error(firing)
            if firing.fault.action.kind is HANG_UP:
                self._hang_up()
            else:
                yield firing

    def _hang_up(self) -> None:
        """Break the connection to the helper. ZeroMQ tells both ends that the other has."""
        if self._peer_fd < 0 or self._hung_up:
            return
        self._hung_up = True
        # If the helper has gone already, ZeroMQ may have closed its end as well.
        shut(self._peer_fd)


def _zmq_error(firing: Firing) -> zmq.ZMQError:
    return zmq.ZMQError(firing.errnoval, f"fault: {firing.fault}")
