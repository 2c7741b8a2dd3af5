"""libxl's pipes, with the points of their messages."""

from __future__ import annotations

import errno
from functools import partial
from typing import Any, NoReturn

from xen_save_helper.helper.channels.pipe_channel import PipeChannel
from xen_save_helper.helper.faults.descriptors import end
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import ON_PIPE
from xen_save_helper.helper.faults.message_points import CallbackPoints
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.helper.faults.striker import Striker


class FaultyPipeChannel(PipeChannel):
    def __init__(self, striker: Striker, streams: Streams, *given: Any) -> None:
        """`given` are the parameters of `PipeChannel`."""
        super().__init__(*given)
        self._points = CallbackPoints(striker, streams, ON_PIPE, self)

    def call(self, name: str, **fields: int | str) -> int:
        return self._points.call(name, partial(super().call, name, **fields))

    def _seam_send(self, name: str, data: bytes) -> None:
        self._points.send(name, data, partial(super()._seam_send, name))

    def _seam_answer(self, name: str, value: int) -> int | None:
        return self._points.answer(name, value)

    def fail(self, firing: Firing) -> NoReturn:
        self._fail(firing.errnoval, firing.reason)

    def hang_up(self, firing: Firing) -> NoReturn:
        """Close both pipes; their numbers stay in use."""
        for fd in (self._messages, self._answers):
            end(fd)
        self._fail(errno.EPIPE, firing.reason)
