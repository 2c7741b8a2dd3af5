"""The controller's end of libxl's pipes, to libxl's own C helper or ours in its place."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from xen_save_helper.ipc_schema.channel import pipe_codec
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments, build
from xen_save_helper.ipc_schema.channel.messages import Answer, Message
from xen_save_helper.ipc_schema.channel.turn_taking import PipeControllerEnd, TurnError
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.toolstack.helpers.channel import ChannelListener, HelperProcessArguments

_READ_AT_ONCE = 1 << 16


class PipeController:
    """The channel to one helper, which is started with `arguments`."""

    def __init__(
        self, arguments: HelperArguments, provided: frozenset[str], listener: ChannelListener
    ) -> None:
        """Open the pipes. Raises OSError."""
        self._arguments = arguments
        self._listener = listener
        self._turns = PipeControllerEnd(arguments.request.operation, provided)
        self._answers_read, self._answers = os.pipe()
        try:
            self._messages, self._messages_write = os.pipe()
        except OSError:
            os.close(self._answers_read)
            os.close(self._answers)
            raise
        os.set_blocking(self._messages, False)
        os.set_blocking(self._answers, False)
        self._buffer = bytearray()
        self._listening = False

    @property
    def process_arguments(self) -> HelperProcessArguments:
        return HelperProcessArguments(
            tuple(build(self._arguments)), (), self._answers_read, self._messages_write
        )

    def listen(self) -> None:
        for fd in (self._answers_read, self._messages_write):
            os.close(fd)
        self._answers_read = self._messages_write = -1
        self._listening = True
        loop = asyncio.get_running_loop()
        loop.add_reader(self._messages, self._ready)
        # There is no greeting on the pipes: the helper's first message is its first callback.
        loop.call_soon(self._listener.hello)

    def stop_listening(self) -> None:
        if self._listening:
            self._listening = False
            asyncio.get_running_loop().remove_reader(self._messages)

    def close(self) -> None:
        self.stop_listening()
        for fd in (self._answers_read, self._answers, self._messages, self._messages_write):
            if fd >= 0:
                os.close(fd)
        self._answers_read = self._answers = self._messages = self._messages_write = -1

    async def drain(self, limit: float) -> None:
        """All that an ended process wrote is in the pipe: there is nothing to wait for."""
        if self._listening:
            self._ready()

    def start(self, fields: dict[str, Any]) -> None:
        """Do nothing: the command line has it all."""

    def answer(self, message: Message, value: int) -> None:
        data = pipe_codec.encode_answer(value)
        self._turns.sending("reply" if message.answer is Answer.SYNC else "async_callback_done")
        if os.write(self._answers, data) != len(data):
            raise BlockingIOError("an answer cannot be written: the pipe is full")

    def abort(self, rc: int, reason: str) -> None:
        """Do nothing: the pipes have no such message."""

    def _ready(self) -> None:
        while self._listening:
            try:
                data = os.read(self._messages, _READ_AT_ONCE)
            except BlockingIOError:
                return
            if not data:
                short = f" in the middle of a message ({len(self._buffer)} bytes)"
                self._listener.lost(f"the helper closed its pipe{short if self._buffer else ''}")
                self.stop_listening()
                return
            self._buffer += data
            self._parse()

    def _parse(self) -> None:
        size = pipe_codec.HEADER_SIZE
        while self._listening and len(self._buffer) >= size:
            try:
                length = pipe_codec.decode_header(bytes(self._buffer[:size]))
                if len(self._buffer) < size + length:
                    return
                body = bytes(self._buffer[size : size + length])
                message, fields = pipe_codec.decode_body(
                    self._arguments.dialect, self._arguments.request.operation, body
                )
                self._turns.received(message, fields)
            except (DecodeError, TurnError) as bad:
                self._listener.violation(f"the helper broke the protocol: {bad}")
                return
            del self._buffer[: size + length]
            self._listener.message(message, fields)
