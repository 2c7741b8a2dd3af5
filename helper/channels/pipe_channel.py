"""The helper's end of libxl's own channel: messages on stdout, answers on stdin.

See `ipc_schema.channel.pipe_codec` for the encoding and libxl_save_helper.c for the conversation.
"""

from __future__ import annotations

import errno
import os
import select
import threading

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import ChannelError, log_fields, printable
from xen_save_helper.helper.patience import Poll, Ready, controller_stands_still, poll_patiently
from xen_save_helper.ipc_schema.channel import pipe_codec
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    UNCONDITIONAL,
    Answer,
    Dialect,
    XentoollogLevel,
    callbacks_of,
)
from xen_save_helper.ipc_schema.hints import Any, NoReturn


class PipeChannel:
    """`Channel` over a pair of pipe descriptors, which stay the caller's. `answer_limit`, in
    seconds (0: none), applies to each callback's answer, and to writing into a pipe that nobody
    reads."""

    def __init__(
        self,
        answers: int,
        messages: int,
        dialect: Dialect,
        cbflags: int,
        abort: Abort,
        answer_limit: float = 0.0,
    ) -> None:
        self._answers = answers
        self._messages = messages
        self._dialect = dialect
        self._provided = UNCONDITIONAL | callbacks_of(cbflags, dialect)
        self._abort = abort
        self._answer_limit = answer_limit
        self._answered = select.poll()
        self._answered.register(answers, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(messages, select.POLLOUT)
        self._over: ChannelError | None = None
        self._hung_up = False
        self._sending = threading.Lock()

    def provides(self, name: str) -> bool:
        return name in self._provided

    def call(self, name: str, **fields: int | str) -> int:
        if CATALOGUE[name].answer is Answer.NONE:
            raise ValueError(f"{name} has no answer")
        if self._hung_up:
            return 0
        self._send(name, fields)
        while True:
            value = pipe_codec.decode_answer(self._receive(pipe_codec.ANSWER_SIZE, name))
            if (taken := self._seam_answer(name, value)) is not None:
                return taken

    def wait_for_ever(self) -> None:
        self._answer_limit = 0.0

    def tell(self, name: str, **fields: int | str) -> None:
        if CATALOGUE[name].answer is not Answer.NONE:
            raise ValueError(f"{name} has an answer")
        self._send(name, printable(fields))

    def leave(self) -> None:
        self._hung_up = True
        for fd in (self._answers, self._messages):
            os.close(fd)

    def remark(self, level: XentoollogLevel, text: str) -> bool:
        """Send a short log line, from any thread, if that is possible at once: not in the middle of
        a message, nor into a full pipe. Returns whether it was sent."""
        fields = log_fields(level, text)
        data = pipe_codec.encode_message(self._dialect, "log", printable(fields))
        if len(data) > select.PIPE_BUF:
            raise ValueError(f"a remark of {len(data)} bytes: {text[:100]!r}")
        if self._hung_up or not self._sending.acquire(blocking=False):
            return False
        try:
            if self._over or not self._writable.poll(0):
                return False
            os.write(self._messages, data)
        except OSError:
            return False  # libxl is gone, as the saving thread will find out
        finally:
            self._sending.release()
        return True

    def _send(self, name: str, fields: dict[str, Any]) -> None:
        if self._over:
            raise self._over
        if self._hung_up:
            return
        data = pipe_codec.encode_message(self._dialect, name, fields)
        with self._sending:
            self._seam_send(name, data)

    def _seam_send(self, name: str, data: bytes) -> None:
        """Write all of the message `name`. A seam: `FaultyPipeChannel` injects faults here."""
        pending = memoryview(data)
        while pending:
            if not self._wait(self._writable):
                reason = f"nothing was taken for {self._answer_limit} s"
                self._fail(errno.ETIMEDOUT, f"cannot send {name}: {reason}")
            try:
                # A pipe takes this much without blocking once it polls writable.
                pending = pending[os.write(self._messages, pending[: select.PIPE_BUF]) :]
            except OSError as bad:
                self._fail(bad.errno or errno.EIO, f"cannot send {name}: {bad.strerror}")

    def _seam_answer(self, name: str, value: int) -> int | None:
        """The value of an answer to `name` that has come; None if it has not. A seam, like
        `_seam_send`."""
        del name
        return value

    def _receive(self, size: int, name: str) -> bytes:
        """Read the answer to `name`, of `size` bytes."""
        data = b""
        while len(data) < size:
            if not self._wait(self._answered):
                self._fail(errno.ETIMEDOUT, f"no answer to {name} within {self._answer_limit} s")
            try:
                part = os.read(self._answers, size - len(data))
            except OSError as bad:
                self._fail(bad.errno or errno.EIO, f"no answer to {name}: {bad.strerror}")
            if not part:
                self._fail(errno.EPIPE, f"the controller closed the channel, {name} is unanswered")
            data += part
        return data

    def _wait(self, poll: Poll) -> Ready:
        """Wait for an answer, or for room, within the limit; the wait counts as activity."""
        return poll_patiently(
            poll, self._answer_limit, look=self._abort.alive, stopped=controller_stands_still
        )

    def _fail(self, errnoval: int, reason: str) -> NoReturn:
        self._over = ChannelError(errnoval, reason)
        self._abort.request(errnoval, reason, lost=True)
        raise self._over
