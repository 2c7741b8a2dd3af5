"""Our controller's channel, with the points of its messages."""

from __future__ import annotations

import errno
from functools import partial
from typing import NoReturn

import zmq

from xen_save_helper.helper.channels.zmq_channel import ZmqChannel
from xen_save_helper.helper.faults.echo import Echo
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import ON_ZMQ
from xen_save_helper.helper.faults.message_points import CallbackPoints
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.helper.faults.striker import Striker

_FAREWELL_MILLISECONDS = 1000


class FaultyZmqChannel(ZmqChannel):
    def __init__(
        self, striker: Striker, streams: Streams, endpoint: str, secret: bytes, answer_limit: float
    ) -> None:
        super().__init__(endpoint, secret, answer_limit)
        self._endpoint = endpoint
        self._echo = Echo(self._context)
        self._points = CallbackPoints(striker, streams, ON_ZMQ, self, self._echo.wait)

    def call(self, name: str, **fields: int | str) -> int:
        return self._points.call(name, partial(super().call, name, **fields))

    def _seam_send(self, name: str, data: bytes) -> None:
        self._points.send(name, data, partial(super()._seam_send, name))

    def close(self) -> None:
        self._echo.close()
        super().close()

    def _seam_answer(self, name: str, value: int) -> int | None:
        return self._points.answer(name, value)

    def fail(self, firing: Firing) -> NoReturn:
        self._fail(firing.errnoval, firing.reason)

    def hang_up(self, firing: Firing) -> NoReturn:
        """Break the connection; what was sent still goes out."""
        self._socket.setsockopt(zmq.LINGER, _FAREWELL_MILLISECONDS)
        self._socket.disconnect(self._endpoint)
        self._fail(errno.EPIPE, firing.reason)
