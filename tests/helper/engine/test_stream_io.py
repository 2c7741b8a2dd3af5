"""Reading and writing streams, over real descriptors."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.waiting import wait_for
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine import stream_io
from xen_save_helper.helper.engine.stream_io import (
    IOV_MAX,
    BusyPoll,
    Pacer,
    StreamInput,
    StreamOutput,
    advance,
    take,
)
from xen_save_helper.ipc_schema.board import Board, Word
from xen_save_helper.ipc_schema.errors import DecodeError

pytestmark = pytest.mark.usefixtures("no_leaks")


def drain(sock: socket.socket, into: bytearray) -> threading.Thread:
    def work() -> None:
        while data := sock.recv(1 << 16):
            into.extend(data)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@given(st.lists(st.binary(max_size=5), max_size=6), st.integers(0, 40))
def test_advance_and_take_part_the_bytes(buffers: list[bytes], size: int) -> None:
    whole = b"".join(buffers)
    assert b"".join(take(buffers, size)) == whole[:size]
    assert b"".join(advance(buffers, size)) == whole[size:]


@pytest.mark.parametrize("blocking", [True, False])
def test_more_buffers_than_one_call_takes(
    abort: Abort, ends: tuple[socket.socket, socket.socket], blocking: bool
) -> None:
    near, far = ends
    near.setblocking(blocking)
    got = bytearray()
    thread = drain(far, got)
    buffers = [bytes([n % 251]) * 700 for n in range(2 * IOV_MAX + 3)]
    out = StreamOutput(near.fileno(), abort)
    out.write(buffers)
    near.shutdown(socket.SHUT_WR)
    thread.join()
    assert got == b"".join(buffers)
    assert out.sent == len(got)


def test_the_offset_of_a_broken_write(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    out = StreamOutput(near.fileno(), abort)
    out.write([b"0123456789abcdef"])
    far.close()
    with pytest.raises(BrokenPipeError, match="offset 0x10"):
        out.write([b"more"])


def test_a_full_disk(abort: Abort) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="offset 0x0: No space left") as raised:
            StreamOutput(fd, abort).write([b"bytes"])
    finally:
        os.close(fd)
    assert raised.value.errno == errno.ENOSPC


def test_an_abort_ends_a_write_that_nobody_takes(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, _far = ends
    abort.guard_stream(near.fileno())
    timer = threading.Timer(0.05, abort.request, (errno.ECANCELED, "enough of it"))
    timer.start()
    with pytest.raises(OSError, match="enough of it") as raised:
        StreamOutput(near.fileno(), abort).write([bytes(1 << 24)])
    timer.join()
    assert raised.value.errno == errno.ECANCELED


def test_an_abort_ends_a_read_that_nobody_feeds(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, _far = ends
    abort.guard_stream(near.fileno(), reading=True)
    timer = threading.Timer(0.05, abort.request, (errno.ECANCELED, "enough of it"))
    timer.start()
    with pytest.raises(OSError, match="enough of it"):
        StreamInput(near.fileno(), abort).read(8, "header")
    timer.join()


def test_an_abort_ends_a_large_read_of_which_some_has_come(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    abort.guard_stream(near.fileno(), reading=True)
    far.send(bytes(1 << 15))
    timer = threading.Timer(0.05, abort.request, (errno.ECANCELED, "enough of it"))
    timer.start()
    with pytest.raises(OSError, match="enough of it"):
        StreamInput(near.fileno(), abort).readinto([memoryview(bytearray(1 << 20))], "contents")
    timer.join()


def test_an_abort_ends_the_wait_of_a_slow_pace(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, _far = ends
    timer = threading.Timer(0.05, abort.request, (errno.ECANCELED, "enough of it"))
    timer.start()
    with pytest.raises(OSError, match="enough of it"):
        StreamOutput(near.fileno(), abort, bandwidth=10).write([bytes(20000)])
    timer.join()


def test_the_pace_is_kept(abort: Abort, ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    got = bytearray()
    thread = drain(far, got)
    started = time.monotonic()
    StreamOutput(near.fileno(), abort, bandwidth=4_000_000).write([bytes(800_000)])
    assert 0.15 < time.monotonic() - started < 2
    near.shutdown(socket.SHUT_WR)
    thread.join()
    assert len(got) == 800_000


def test_what_the_board_says_is_followed_at_once(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    """A paused stream shows life, and no more; a bandwidth and its end are followed within one
    write."""
    near, far = ends
    got = bytearray()
    thread = drain(far, got)
    board = Board()
    board.pause(time.monotonic())
    out = StreamOutput(near.fileno(), abort, bandwidth=1, board=board)
    writer = threading.Thread(target=out.write, args=([bytes(800_000)],))
    writer.start()
    wait_for(lambda: got, "a sign of life")
    wait_for(lambda: len(got) > 4096, "and another")
    assert len(got) < 800_000
    board.ints[Word.BANDWIDTH] = 400_000
    board.resume(time.monotonic())
    wait_for(lambda: len(got) > 50_000, "it goes on")
    assert len(got) < 800_000
    board.ints[Word.BANDWIDTH] = 0
    writer.join(5)
    assert not writer.is_alive()
    near.shutdown(socket.SHUT_WR)
    thread.join()
    assert len(got) == out.sent == board.ints[Word.BYTES] == 800_000


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 0.1)), max_size=30))
def test_a_pacer_lets_no_more_through(turns: list[tuple[int, float]]) -> None:
    now = 100.0
    pacer = Pacer(50_000, lambda: now)
    went = 0
    for size, pause in turns:
        now += pacer.delay()
        pacer.charge(size)
        went += size
        assert went - size <= 50_000 * (now - 100.0 + 0.02)
        now += pause


def test_an_unlimited_pacer_never_waits() -> None:
    pacer = Pacer(0)
    pacer.charge(1 << 40)
    assert pacer.delay() == 0


def test_a_stream_that_ends_too_early(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    far.send(b"0123456789")
    far.close()
    reader = StreamInput(near.fileno(), abort)
    assert reader.read(4, "first") == b"0123"
    with pytest.raises(
        DecodeError, match="second at offset 0xa: the stream ends, 2 bytes are missing"
    ):
        reader.read(8, "second")


def test_a_stream_that_ends_amid_a_large_read(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    far.send(bytes(1 << 15))
    far.close()
    with pytest.raises(DecodeError, match=r"contents at offset 0x8000: .*, 1015808 bytes"):
        StreamInput(near.fileno(), abort).readinto([memoryview(bytearray(1 << 20))], "contents")


@pytest.mark.parametrize("ahead", [0, 8])
def test_a_large_read_takes_nothing_of_what_follows(
    abort: Abort, ends: tuple[socket.socket, socket.socket], ahead: int
) -> None:
    """Into many parts, and although the sender says the rest much later."""
    near, far = ends
    stream = os.urandom(1 << 20)
    parts = [memoryview(bytearray(512)) for _ in range(len(stream) // 512)]
    assert len(parts) > IOV_MAX
    sender = threading.Thread(target=far.sendall, args=(stream,))
    sender.start()
    reader = StreamInput(near.fileno(), abort)
    reader.readinto(parts, "contents", ahead)
    sender.join()
    assert b"".join(parts) == stream
    assert reader.offset == len(stream)
    far.send(b"the next another's")
    assert reader.read(8, "header") == b"the next"
    assert near.recv(100) == b" another's"


def test_a_large_read_of_a_socket_that_does_not_block(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    near.setblocking(False)
    stream = os.urandom(1 << 20)
    sender = threading.Timer(0.05, far.sendall, (stream,))
    sender.start()
    whole = bytearray(len(stream))
    StreamInput(near.fileno(), abort).readinto([memoryview(whole)], "contents")
    sender.join()
    assert whole == stream


def test_a_length_field_takes_no_memory(abort: Abort, tmp_path: object) -> None:
    read, write = os.pipe()
    os.write(write, bytes(100))
    os.close(write)
    try:
        with pytest.raises(DecodeError, match="ends"):
            StreamInput(read, abort).read(1 << 40, "huge")
    finally:
        os.close(read)


def test_skipping(abort: Abort, ends: tuple[socket.socket, socket.socket]) -> None:
    near, far = ends
    far.send(bytes(100) + b"end")
    reader = StreamInput(near.fileno(), abort)
    reader.skip(100, "filler")
    assert reader.read(3, "end") == b"end"
    assert reader.read(0, "nothing") == b""
    assert reader.offset == 103


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=6),
    st.booleans(),
)
def test_reading_ahead_takes_what_follows_and_no_more(
    steps: list[tuple[int, int]], some: bool
) -> None:
    """Each step reads so many bytes, and says how many more will surely follow."""
    sizes = [size for size, _ahead in steps]
    stream = bytes(number % 251 for number in range(sum(sizes)))
    near, far = socket.socketpair()
    with near, far, Abort(signals=frozenset()) as abort:
        far.send(stream + b"another's")
        reader = StreamInput(near.fileno(), abort)
        got = b""
        for place, (size, ahead) in enumerate(steps, 1):
            following = min(ahead, sum(sizes[place:]))
            if some:
                got += reader.read(size, "part", following)
            else:
                buffer = memoryview(bytearray(size))
                reader.readinto([buffer[: size // 2], buffer[size // 2 :]], "part", following)
                got += bytes(buffer)
            assert reader.offset == len(got)
        assert got == stream
        assert near.recv(100) == b"another's"


def test_what_was_read_ahead_comes_first(
    abort: Abort, ends: tuple[socket.socket, socket.socket]
) -> None:
    near, far = ends
    far.send(b"0123456789")
    reader = StreamInput(near.fileno(), abort)
    assert reader.read(2, "first", ahead=3) == b"01"
    buffer = bytearray(8)
    assert reader.read_some([memoryview(buffer)], "next") == 3
    assert buffer[:3] == b"234"
    assert reader.read_some([memoryview(buffer)], "last") == 5
    assert (bytes(buffer[:5]), reader.offset) == (b"56789", 10)


@pytest.mark.parametrize("expecting", [False, True])
@pytest.mark.parametrize("seconds", [0.0, 0.02, None])
def test_a_busy_poll_tells_what_a_poll_tells(
    ends: tuple[socket.socket, socket.socket], seconds: float | None, expecting: bool
) -> None:
    near, far = ends
    poll = BusyPoll(0.01)
    poll.register(far.fileno(), select.POLLIN)
    if expecting:
        poll.expect()
    if seconds is not None:
        started = time.monotonic()
        assert poll.poll(seconds) == []
        assert time.monotonic() >= started + seconds
    timer = threading.Timer(0.02, lambda: near.send(b"!"))
    timer.start()
    assert poll.poll(None if seconds is None else 10) == [(far.fileno(), select.POLLIN)]
    timer.join()
    assert poll.poll(seconds) == [(far.fileno(), select.POLLIN)]


def test_a_busy_poll_is_busy_for_a_while_after_what_is_expected() -> None:
    poll = BusyPoll(0.01)
    assert poll.busy == 0
    poll.expect()
    assert 0 < poll.busy <= 0.01
    assert poll.poll(poll.busy) == []
    assert poll.busy == 0


def test_a_busy_poll_sleeps_more_while_it_loses_its_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yields = 0

    def to_a_program_that_computes() -> None:
        nonlocal yields
        yields += 1
        time.sleep(0.001)

    def waits_until_it_spins() -> int:
        before = yields
        waits = 0
        while yields == before:
            poll.expect()
            assert poll.poll(0.0001) == []
            waits += 1
        return waits

    monkeypatch.setattr(os, "sched_yield", to_a_program_that_computes)
    poll = BusyPoll(1.0)
    assert [waits_until_it_spins() for _ in range(4)] == [1, 17, 33, 65]
    assert yields == 4, "a wait that has lost a slice goes on asleep"
    with monkeypatch.context() as patch:
        patch.setattr(stream_io, "_SLICE_SECONDS", 1000.0)  # however busy this machine is
        for _ in range(stream_io._SPUN_IN_PEACE):
            waits_until_it_spins()
    assert [waits_until_it_spins() for _ in range(2)] == [1, 9]


def test_a_stream_says_whether_it_is_paced(
    ends: tuple[socket.socket, socket.socket], abort: Abort
) -> None:
    board = Board()
    out = StreamOutput(ends[0].fileno(), abort, board=board)
    out.delay()
    assert not out.paced
    board.ints[Word.BANDWIDTH] = 1 << 20
    out.delay()
    assert out.paced
