"""Our controller's channel, with the points of its messages."""

from __future__ import annotations

import errno
from typing import NoReturn

import zmq

from xen_save_helper.helper.channels.zmq_channel import ZmqChannel
from xen_save_helper.helper.faults.echo import Echo
from xen_save_helper.helper.faults.message_faults import ON_ZMQ
from xen_save_helper.helper.faults.message_points import MessagePoints
from xen_save_helper.helper.faults.session import Session
from xen_save_helper.ipc_schema.channel import msgpack_codec
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.faults.points import Moment, message_point

_ANSWERS = frozenset({"reply", "async_callback_done"})
_FAREWELL_MILLISECONDS = 1000


class FaultyZmqChannel(ZmqChannel):
    def __init__(
        self,
        session: Session,
        endpoint: str,
        secret: bytes,
        answer_limit: float,
    ) -> None:
        super().__init__(endpoint, secret, answer_limit)
        self._endpoint = endpoint
        self._asked = ""
        self._session = session
        self._echo = Echo(self._context)
        self._points = MessagePoints(session, ON_ZMQ, self)

    def call(self, name: str, **fields: int | str) -> int:
        self._points.calling(name)
        self._asked = name
        value = super().call(name, **fields)
        self._asked = ""
        self._points.taken(name)
        return value

    def _seam_send(self, name: str, data: bytes) -> None:
        self._points.send(name, data, self._write)

    def _write(self, name: str, data: bytes) -> None:
        super()._seam_send(name, data)
        if self._session.has(message_point(name, Moment.AFTER_SEND)):
            self._echo.wait()

    def close(self) -> None:
        self._echo.close()
        super().close()

    def _seam_receive(self) -> bytes:
        data = super()._seam_receive()
        try:
            seq, message, fields = msgpack_codec.decode(data)
        except DecodeError:
            return data
        if not self._asked or message.name not in _ANSWERS:
            return data
        value = self._points.answer(self._asked, fields["value"])
        if value is None:
            raise zmq.Again
        return msgpack_codec.encode(seq, message.name, {**fields, "value": value})

    def fail(self, errnoval: int, reason: str) -> NoReturn:
        self._fail(errnoval, reason)

    def hang_up(self, reason: str) -> NoReturn:
        """Break the connection; what was sent still goes out."""
        self._socket.setsockopt(zmq.LINGER, _FAREWELL_MILLISECONDS)
        self._socket.disconnect(self._endpoint)
        self._fail(errno.EPIPE, reason)
