"""The controller's end of the conversation with our helper, with the points of its messages."""

from __future__ import annotations

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
        for firing in self._striker.strike(message_point(message.name, Moment.BEFORE_ANSWER)):
            kind = firing.fault.action.kind
            if kind is ANSWER:
                value = int(firing.fault.action.value or 0)
            elif kind is FAIL:
                raise firing.error()
            elif kind is HANG_UP:
                self._hang_up()
            else:
                self._of_answer.append(firing)
        try:
            super().answer(message, value)
        finally:
            self._of_answer = []
        self._strike_after(message.name, Moment.AFTER_ANSWER)

    def _seam_send(self, name: str, peer: bytes, data: bytes) -> None:
        left = []
        for firing in (
            *self._of_answer,
            *self._striker.strike(message_point(name, Moment.BEFORE_SEND)),
        ):
            kind = firing.fault.action.kind
            if kind is FAIL:
                raise zmq.ZMQError(firing.errnoval, f"fault: {firing.fault}")
            if kind is HANG_UP:
                self._hang_up()
            else:
                left.append(firing)
        going = self._outgoing.instead((name, peer), data, left)
        if going is None:
            return
        for (its_name, its_peer), message in going:
            super()._seam_send(its_name, its_peer, message)
        if self._striker.has(message_point(name, Moment.AFTER_SEND)):
            self._echo.wait()
        self._strike_after(name, Moment.AFTER_SEND)

    def _strike_after(self, name: str, moment: Moment) -> None:
        for firing in self._striker.strike(message_point(name, moment)):
            assert firing.fault.action.kind is HANG_UP
            self._hang_up()

    # What the helper says

    def _seam_heard(self, message: Message, fields: dict[str, Any]) -> None:
        passed_on = True
        for firing in self._striker.strike(message_point(message.name, Moment.HEARD)):
            if firing.fault.action.kind is HANG_UP:
                self._hang_up()
            else:
                assert firing.fault.action.kind is DROP
            passed_on = False
        if passed_on:
            super()._seam_heard(message, fields)

    def _hang_up(self) -> None:
        """Break the connection to the helper. ZeroMQ tells both ends, as if the other had."""
        if self._peer_fd < 0 or self._hung_up:
            return
        self._hung_up = True
        # If the helper has gone already, ZeroMQ may have closed its end, too.
        shut(self._peer_fd)
