"""The controller's end of the channel to our helper, with the points of its messages."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import zmq

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.echo import Echo
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import ON_ZMQ
from xen_save_helper.helper.faults.message_points import MessagePoints
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.channel.messages import Message, Operation
from xen_save_helper.ipc_schema.faults.actions import ANSWER
from xen_save_helper.ipc_schema.faults.points import Moment
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
        self._echo = Echo(self._context)
        self._points = MessagePoints(striker, ON_ZMQ, self, self._echo.wait)
        self._of_answer: list[Firing] = []
        self._hung_up = False

    def close(self) -> None:
        self._echo.close()
        super().close()

    def answer(self, message: Message, value: int) -> None:
        for firing in self._points.strike(message.name, Moment.BEFORE_ANSWER):
            if firing.fault.action.kind is ANSWER:
                value = int(firing.fault.action.value or 0)
            else:
                self._of_answer.append(firing)
        try:
            super().answer(message, value)
        finally:
            self._of_answer.clear()
        self._points.strike(message.name, Moment.AFTER_ANSWER)

    def _seam_send(self, name: str, peer: bytes, data: bytes) -> None:
        transmit = partial(super()._seam_send, name, peer)
        try:
            self._points.send(name, data, transmit, self._of_answer)
        except OSError as failed:
            raise zmq.ZMQError(failed.errno, failed.strerror) from failed

    def _seam_heard(self, message: Message, fields: dict[str, Any]) -> None:
        if not self._points.strike(message.name, Moment.HEARD):
            super()._seam_heard(message, fields)

    def fail(self, firing: Firing) -> NoReturn:
        raise firing.error()

    def hang_up(self, firing: Firing) -> None:
        """Break the connection to the helper. ZeroMQ tells both ends that the other has."""
        del firing
        if self._peer_fd < 0 or self._hung_up:
            return
        self._hung_up = True
        # If the helper has gone already, ZeroMQ may have closed its end as well.
        shut(self._peer_fd)
