"""Moving a stream into a pipe: nothing is lost, and nothing more is read than was asked for."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from xen_save_helper.toolstack.aio.splice import StreamRelay, make_pipe

pytestmark = pytest.mark.usefixtures("no_leaks")

LIMIT = 20.0
DATA = os.urandom(1 << 20) * 5 + b"the end"
Ended = list[OSError | None]


def relay_to_end(
    source: int, reader: Callable[[int], None], preface: bytes = b""
) -> tuple[Ended, int]:
    """Run a relay whose pipe `reader` reads in a thread; return how it ended and what it moved."""

    async def run() -> tuple[Ended, int]:
        reading_end, writing_end = make_pipe()
        over = asyncio.Event()
        ended: Ended = []

        def done(error: OSError | None) -> None:
            ended.append(error)
            over.set()

        thread = threading.Thread(target=reader, args=(reading_end,))
        relay = StreamRelay(source, writing_end, preface, done)
        thread.start()
        async with asyncio.timeout(LIMIT):
            await over.wait()
        thread.join(LIMIT)
        return ended, relay.moved

    return asyncio.run(run())


class Everything:
    """Reads a pipe to its end."""

    def __init__(self) -> None:
        self.data = b""

    def __call__(self, fd: int) -> None:
        with open(fd, "rb") as file:
            self.data = file.read()


@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_all_of_it_after_the_preface(kind: str, tmp_path: Path) -> None:
    reader = Everything()
    preface = os.urandom(300_000)
    if kind == "file":
        path = tmp_path / "data"
        path.write_bytes(b"skipped" + DATA)
        with path.open("rb", buffering=0) as file:
            file.seek(7)
            ended = relay_to_end(file.fileno(), reader, preface)
    else:
        ours, theirs = (
            os.pipe() if kind == "pipe" else map(socket.socket.detach, socket.socketpair())
        )

        def feed() -> None:
            with open(theirs, "wb") as file:
                file.write(DATA)

        thread = threading.Thread(target=feed)
        thread.start()
        ended = relay_to_end(ours, reader, preface)
        thread.join(LIMIT)
        os.close(ours)
    assert ended == ([None], len(DATA))
    assert reader.data == preface + DATA


def test_a_reader_that_disconnects_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(bytes(50 << 20))
    with path.open("rb", buffering=0) as file:
        ended, moved = relay_to_end(file.fileno(), os.close)
    assert ended == [None]
    assert moved < 50 << 20


def test_a_source_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "data"
    with path.open("wb", buffering=0) as file:
        ended, _ = relay_to_end(file.fileno(), Everything())
    assert isinstance(ended[0], OSError)


def test_what_comes_after_a_stop_stays_in_the_source() -> None:
    ours, theirs = socket.socketpair()

    async def run() -> None:
        reading_end, writing_end = make_pipe()
        relay = StreamRelay(ours.fileno(), writing_end, b"", lambda _error: None)
        theirs.sendall(b"stream")
        assert await asyncio.to_thread(os.read, reading_end, 100) == b"stream"
        relay.stop()
        theirs.sendall(b"message")
        assert os.read(reading_end, 100) == b""
        os.close(reading_end)

    with ours, theirs:
        asyncio.run(run())
        assert ours.recv(100) == b"message"
