from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import ChannelError
from xen_save_helper.helper.channels.pipe_channel import PipeChannel
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, Dialect, Operation, callback_bit
from xen_save_helper.ipc_schema.channel.pipe_codec import HEADER_SIZE, decode_body, decode_header

SUSPEND = callback_bit(CATALOGUE["suspend"], Dialect.MAINLINE)


@dataclass
class Libxl:
    """libxl's ends of the pipes, and the channel at the other."""

    channel: PipeChannel
    abort: Abort
    messages: int
    answers: int

    def hear(self) -> tuple[str, dict[str, Any]]:
        header = self._exactly(HEADER_SIZE)
        body = self._exactly(decode_header(header))
        message, fields = decode_body(Dialect.MAINLINE, Operation.SAVE, body)
        return message.name, fields

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            part = os.read(self.messages, size - len(data))
            assert part
            data += part
        return data


@pytest.fixture
def libxl(no_leaks: None) -> Iterator[Libxl]:
    answers_read, answers = os.pipe()
    messages, messages_write = os.pipe()
    abort = Abort()
    channel = PipeChannel(answers_read, messages_write, Dialect.MAINLINE, SUSPEND, abort)
    made = Libxl(channel, abort, messages, answers)
    with abort:
        yield made
    for fd in (answers_read, made.answers, made.messages, messages_write):
        if fd >= 0:
            os.close(fd)


class Background:
    """A call in a thread, with its result or its error."""

    def __init__(self, work: Callable[[], int]) -> None:
        self._work = work
        self._result: int | BaseException = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:
            self._result = error

    def result(self) -> int | BaseException:
        self._thread.join(10)
        assert not self._thread.is_alive()
        return self._result


@pytest.mark.parametrize("value", [1, 0, -1, 2**31 - 1, -(2**31)])
def test_a_callback_waits_for_its_answer(libxl: Libxl, value: int) -> None:
    call = Background(lambda: libxl.channel.call("suspend"))
    assert libxl.hear() == ("suspend", {})
    os.write(libxl.answers, struct.pack("=i", value))
    assert call.result() == value


def test_an_answer_may_come_octet_by_octet(libxl: Libxl) -> None:
    call = Background(lambda: libxl.channel.call("complete", retval=0, errnoval=0))
    assert libxl.hear() == ("complete", {"retval": 0, "errnoval": 0})
    for octet in struct.pack("=i", 12345678):
        os.write(libxl.answers, bytes([octet]))
    assert call.result() == 12345678


def test_a_message_longer_than_the_pipe_arrives_whole(libxl: Libxl) -> None:
    lines = [f"{index}" * 4000 for index in range(30)]

    def tell() -> int:
        for line in lines:
            libxl.channel.tell("log", level=1, errnoval=0, context="xc", formatted=line)
        return 0

    call = Background(tell)
    for line in lines:
        name, fields = libxl.hear()
        assert (name, fields["formatted"]) == ("log", line[:8192] + " ..." * (len(line) > 8192))
    assert call.result() == 0


def test_a_log_line_is_not_lost_for_what_it_quotes(libxl: Libxl) -> None:
    libxl.channel.tell("log", level=1, errnoval=0, context="xc", formatted="a\0b\udce9")
    assert libxl.hear()[1]["formatted"] == "a\\0b\\udce9"


def test_cbflags_say_what_is_provided(libxl: Libxl) -> None:
    provided = {name for name in CATALOGUE if libxl.channel.provides(name)}
    assert provided == {"suspend", "log", "progress", "complete"}


@pytest.mark.parametrize("part", [b"", b"\x01\x00"])
def test_libxls_end_ends_the_wait(libxl: Libxl, part: bytes) -> None:
    call = Background(lambda: libxl.channel.call("suspend"))
    libxl.hear()
    os.write(libxl.answers, part)
    os.close(libxl.answers)
    libxl.answers = -1
    error = call.result()
    assert isinstance(error, ChannelError)
    assert error.errno == errno.EPIPE
    assert "suspend is unanswered" in str(error)
    assert libxl.abort.lost
    with pytest.raises(ChannelError, match="suspend is unanswered"):
        libxl.channel.tell("log", level=1, errnoval=0, context="", formatted="")


def test_nobody_there_to_be_told(libxl: Libxl) -> None:
    os.close(libxl.messages)
    libxl.messages = -1
    with pytest.raises(ChannelError, match="cannot send suspend"):
        libxl.channel.call("suspend")
    assert libxl.abort.lost


def test_a_controller_that_reads_nothing_has_a_limit(no_leaks: None) -> None:
    answers, answers_write = os.pipe()
    messages_read, messages = os.pipe()
    fcntl.fcntl(messages, fcntl.F_SETPIPE_SZ, 4096)
    with Abort() as abort:
        channel = PipeChannel(answers, messages, Dialect.MAINLINE, SUSPEND, abort, answer_limit=0.2)

        def tell() -> int:
            while True:
                channel.tell("log", level=1, errnoval=0, context="xc", formatted="x" * 3000)

        call = Background(tell)
        try:
            error = call.result()
        finally:
            os.close(messages_read)
        assert isinstance(error, ChannelError)
        assert error.errno == errno.ETIMEDOUT
        assert "cannot send log: nothing was taken for 0.2 s" in str(error)
        assert abort.lost
    for fd in (answers, answers_write, messages):
        os.close(fd)


def test_a_wrong_use_is_a_fault_of_the_caller(libxl: Libxl) -> None:
    with pytest.raises(ValueError, match="has no answer"):
        libxl.channel.call("log", level=1, errnoval=0, context="", formatted="")
    with pytest.raises(ValueError, match="has an answer"):
        libxl.channel.tell("suspend")
    with pytest.raises(ValueError, match="no such message"):
        libxl.channel.call("precopy_policy", iteration=0, total_written=0, dirty_count=0)
