"""Reads and writes, with limits, on descriptors that others use too."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from xen_save_helper.toolstack.aio import fd_io

T = TypeVar("T")
LIMIT = 20.0
SHORT = 0.1
BIG = os.urandom(3 << 20)

Pair = tuple[int, int]


@pytest.fixture(params=["socket", "pipe"])
def pair(request: pytest.FixtureRequest, no_leaks: None) -> Iterator[Pair]:
    """(read, write) descriptors, blocking as a parent leaves them."""
    if request.param == "pipe":
        read, write = os.pipe()
    else:
        one, other = socket.socketpair()
        read, write = one.detach(), other.detach()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def run(work: Awaitable[T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(60):
            return await work

    return asyncio.run(bounded())


def test_much_data_goes_through_and_the_flags_stay(pair: Pair) -> None:
    read, write = pair

    async def both() -> bytes:
        _, data = await asyncio.gather(
            fd_io.write_all(write, BIG, limit=LIMIT),
            fd_io.read_exactly(read, len(BIG), limit=LIMIT),
        )
        assert os.get_blocking(read)
        assert os.get_blocking(write)
        return data

    assert run(both()) == BIG
    assert os.get_blocking(read)
    assert os.get_blocking(write)


def test_nothing_beyond_what_was_asked_is_taken(pair: Pair) -> None:
    read, write = pair
    os.write(write, b"12345678rest")
    assert run(fd_io.read_exactly(read, 8, limit=LIMIT)) == b"12345678"
    assert os.read(read, 100) == b"rest"


def test_a_stream_that_ends_early_says_after_how_much(pair: Pair) -> None:
    read, write = pair
    os.write(write, b"123")
    os.close(write)
    with pytest.raises(fd_io.UnexpectedEnd, match=r"my header: .* after 3 bytes, want 8"):
        run(fd_io.read_exactly(read, 8, limit=LIMIT, what="my header"))


def test_a_reader_that_disconnects_is_an_error_not_a_signal(pair: Pair) -> None:
    read, write = pair
    os.close(read)
    with pytest.raises(BrokenPipeError):
        run(fd_io.write_all(write, BIG, limit=LIMIT))


def test_a_peer_that_takes_nothing_has_a_limit(pair: Pair) -> None:
    _, write = pair
    with pytest.raises(
        TimeoutError, match=r"my record: the other side has taken nothing for 0.1 s"
    ):
        run(fd_io.write_all(write, BIG, limit=SHORT, what="my record"))


def test_a_peer_that_sends_nothing_has_a_limit(pair: Pair) -> None:
    read, _ = pair
    with pytest.raises(TimeoutError, match=r"my record: the other side has sent nothing for 0.1 s"):
        run(fd_io.read_exactly(read, 8, limit=SHORT, what="my record"))


def test_a_cancelled_read_leaves_the_descriptor_to_others(pair: Pair) -> None:
    read, write = pair

    async def cancelled() -> bytes:
        task = asyncio.ensure_future(fd_io.read_exactly(read, 8, limit=LIMIT))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        os.write(write, b"12345678")
        return await fd_io.read_exactly(read, 8, limit=LIMIT)

    assert run(cancelled()) == b"12345678"


def test_a_cancelled_write_reports_nothing_and_sends_no_more(pair: Pair) -> None:
    read, write = pair
    reports: list[Exception | None] = []

    async def cancelled() -> None:
        transfer = fd_io.start_write(write, BIG, reports.append, limit=LIMIT)
        await fd_io.read_exactly(read, 4096, limit=LIMIT)
        transfer.cancel()
        os.close(write)
        with pytest.raises(fd_io.UnexpectedEnd):
            await fd_io.read_exactly(read, len(BIG), limit=LIMIT)

    run(cancelled())
    assert reports == []


def test_the_report_comes_with_the_last_byte(pair: Pair) -> None:
    """The report is made before the loop does anything else: whoever reads a whole record at the
    other side may rely on its writer knowing that."""
    read, write = pair
    order: list[str] = []

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        told = asyncio.Event()

        def done(_error: Exception | None) -> None:
            order.append("told")
            told.set()

        loop.add_reader(read, order.append, "seen")
        fd_io.start_write(write, b"12345678", done, limit=LIMIT)
        await told.wait()
        loop.remove_reader(read)

    run(watch())
    assert order[0] == "told"


def test_a_regular_file(tmp_path: Path, no_leaks: None) -> None:
    path = tmp_path / "stream"
    with path.open("wb") as file:
        run(fd_io.write_all(file.fileno(), BIG, limit=LIMIT))
    with path.open("rb") as file:
        assert run(fd_io.read_exactly(file.fileno(), len(BIG), limit=LIMIT)) == BIG
        with pytest.raises(fd_io.UnexpectedEnd):
            run(fd_io.read_exactly(file.fileno(), 1, limit=LIMIT))


def test_dev_null_and_a_full_device(no_leaks: None) -> None:
    with open("/dev/null", "r+b", buffering=0) as null:
        run(fd_io.write_all(null.fileno(), BIG, limit=LIMIT))
        with pytest.raises(fd_io.UnexpectedEnd):
            run(fd_io.read_exactly(null.fileno(), 1, limit=LIMIT))
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space"):
        run(fd_io.write_all(full.fileno(), b"12345678", limit=LIMIT))


def test_a_descriptor_that_is_not_open() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        run(fd_io.write_all(9999, b"1", limit=LIMIT))
