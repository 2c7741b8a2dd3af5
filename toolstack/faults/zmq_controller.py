"""The controller's end of the conversation with our helper, with the points of its messages."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import zmq

from xen_save_helper.helper.faults.echo import Echo
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.message_faults import ON_ZMQ
from xen_save_helper.ipc_schema.channel.messages import Message, Operation
from xen_save_helper.ipc_schema.faults.actions import ANSWER, DROP, FAIL, HANG_UP, REORDER
from xen_save_helper.ipc_schema.faults.points import Moment, message_point
from xen_save_helper.toolstack.faults.controller import ControllerFaults
from xen_save_helper.toolstack.helpers.channel import ChannelListener
from xen_save_helper.toolstack.helpers.zmq_controller import ZmqController


class FaultyZmqController(ZmqController):
    def __init__(
        self,
        faults: ControllerFaults,
        operation: Operation,
        provided: frozenset[str],
        listener: ChannelListener,
    ) -> None:
        super().__init__(operation, provided, listener)
        self._faults = faults
        self._echo = Echo(self._context)
        self._of_answer: list[Firing] = []
        self._held: list[tuple[str, bytes, bytes]] = []
        self._hung_up = False

    def close(self) -> None:
        self._echo.close()
        super().close()

    # What is said to the helper

    def answer(self, message: Message, value: int) -> None:
        self._of_answer = []
        for firing in self._faults.strike(message_point(message.name, Moment.BEFORE_ANSWER)):
            kind = firing.fault.action.kind
            if kind is ANSWER:
                value = int(firing.fault.action.value or 0)
            elif kind is FAIL:
                raise OSError(_errno_of(firing), f"fault: {firing.fault}")
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
        messages, held = [data], False
        for firing in (
            *self._of_answer,
            *self._faults.strike(message_point(name, Moment.BEFORE_SEND)),
        ):
            kind = firing.fault.action.kind
            if kind is FAIL:
                raise zmq.ZMQError(_errno_of(firing), f"fault: {firing.fault}")
            if kind is HANG_UP:
                self._hang_up()
            elif kind is REORDER:
                held = True
            else:
                mangle = ON_ZMQ[kind.name]
                messages = [made for one in messages for made in mangle(one, firing.random)]
        if held:
            self._held += ((name, peer, message) for message in messages)
            return
        earlier, self._held = self._held, []
        for its_name, its_peer, message in (*((name, peer, one) for one in messages), *earlier):
            super()._seam_send(its_name, its_peer, message)
        if self._faults.has(message_point(name, Moment.AFTER_SEND)):
            self._echo.wait()
        self._strike_after(name, Moment.AFTER_SEND)

    def _strike_after(self, name: str, moment: Moment) -> None:
        for firing in self._faults.strike(message_point(name, moment)):
            assert firing.fault.action.kind is HANG_UP
            self._hang_up()

    # What the helper says

    def _seam_heard(self, message: Message, fields: dict[str, Any]) -> None:
        passed_on = True
        for firing in self._faults.strike(message_point(message.name, Moment.HEARD)):
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
        try:
            with socket.socket(fileno=os.dup(self._peer_fd)) as connection:
                connection.shutdown(socket.SHUT_RDWR)
        except OSError as bad:
            # The helper has gone already, and ZeroMQ may have closed its end, too.
            if bad.errno not in {errno.ENOTCONN, errno.EBADF}:
                raise


def _errno_of(firing: Firing) -> int:
    return int(getattr(errno, str(firing.fault.action.value)))
