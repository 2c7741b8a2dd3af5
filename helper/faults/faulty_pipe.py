"""libxl's pipes, with the points of their messages."""

from __future__ import annotations

import errno
from typing import NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.pipe_channel import PipeChannel
from xen_save_helper.helper.faults.descriptors import hollow
from xen_save_helper.helper.faults.message_faults import ON_PIPE
from xen_save_helper.helper.faults.message_points import MessagePoints
from xen_save_helper.helper.faults.session import Session
from xen_save_helper.ipc_schema.channel import pipe_codec
from xen_save_helper.ipc_schema.channel.messages import Dialect


class FaultyPipeChannel(PipeChannel):
    def __init__(
        self,
        session: Session,
        answers: int,
        messages: int,
        dialect: Dialect,
        cbflags: int,
        abort: Abort,
        answer_limit: float,
    ) -> None:
        super().__init__(answers, messages, dialect, cbflags, abort, answer_limit)
        self._points = MessagePoints(session, ON_PIPE, self)

    def call(self, name: str, **fields: int | str) -> int:
        self._points.calling(name)
        value = super().call(name, **fields)
        self._points.taken(name)
        return value

    def _seam_send(self, name: str, data: bytes) -> None:
        self._points.send(name, data, super()._seam_send)

    def _seam_receive(self, size: int, name: str) -> bytes:
        while True:
            data = super()._seam_receive(size, name)
            value = self._points.answer(name, pipe_codec.decode_answer(data))
            if value is not None:
                return pipe_codec.encode_answer(value)

    def fail(self, errnoval: int, reason: str) -> NoReturn:
        self._fail(errnoval, reason)

    def hang_up(self, reason: str) -> NoReturn:
        """Close both pipes; their numbers stay in use."""
        for fd in (self._messages, self._answers):
            hollow(fd)
        self._fail(errno.EPIPE, reason)
