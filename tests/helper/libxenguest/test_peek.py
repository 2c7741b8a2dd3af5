"""Peeking at the front of a stream, through each kind of descriptor that a stream may use."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.streams import read_cut
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.libxenguest.peek import peek_policy
from xen_save_helper.ipc_schema.streams.static_data import Absent, Policy

CUT = read_cut("pvh-save-xen-4.17")
STREAM = CUT[CUT.index(b"\xff" * 8 + b"XENF") :][:20_000]
MORE = b"what follows"


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


@contextmanager
def unix_socket() -> Iterator[tuple[int, int]]:
    near, far = socket.socketpair()
    with near:
        yield near.fileno(), far.detach()


@contextmanager
def tcp_socket() -> Iterator[tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _peer = server.accept()
    with near:
        yield near.fileno(), far.detach()


each_kind = pytest.mark.parametrize("ends", [pipe, unix_socket, tcp_socket])
Ends = Callable[[], "contextmanager[tuple[int, int]]"]


@pytest.fixture
def abort() -> Iterator[Abort]:
    with Abort(signals=frozenset()) as abort:
        yield abort


@contextmanager
def writing(fd: int, *pieces: bytes, gate: Callable[[], None] | None = None) -> Iterator[None]:
    """Write the pieces from a thread, each but the first after `gate`, then close `fd`."""

    def run() -> None:
        with open(fd, "wb", buffering=0) as file:
            for number, piece in enumerate(pieces):
                if number and gate is not None:
                    gate()
                file.write(piece)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join(10)


def rest_of(fd: int) -> bytes:
    with open(os.dup(fd), "rb") as file:
        return file.read()


@each_kind
def test_nothing_is_taken(ends: Ends, abort: Abort) -> None:
    with ends() as (reader, writer), writing(writer, STREAM):
        found = peek_policy(reader, abort)
        assert isinstance(found, Policy)
        assert found.hvm
        assert found.cpuid in STREAM
        assert rest_of(reader) == STREAM


@each_kind
def test_what_comes_in_pieces_is_waited_for(ends: Ends, abort: Abort) -> None:
    """A sender's own pieces: headers, then each record."""
    pieces = [STREAM[:24], STREAM[24:40], STREAM[40:48], STREAM[48:1000], STREAM[1000:]]
    ready = threading.Semaphore(0)
    looked: list[int] = []

    def look(front: bytes) -> None:
        if not looked or len(front) > looked[-1]:
            looked.append(len(front))
            ready.release()

    with pytest.MonkeyPatch.context() as patch, ends() as (reader, writer):
        from xen_save_helper.helper.libxenguest import peek

        policy_of = peek.policy_of

        def told(front: bytes) -> Policy | Absent:
            look(front)
            return policy_of(front)

        patch.setattr(peek, "policy_of", told)
        with writing(writer, *pieces, gate=lambda: ready.acquire(timeout=10) and None):
            assert isinstance(peek_policy(reader, abort), Policy)
            assert rest_of(reader) == STREAM
    assert len(looked) == len(pieces), "each piece was seen alone"


@each_kind
@pytest.mark.parametrize("length", [0, 20, 300])
def test_a_stream_that_ends_early_is_its_readers_to_complain_of(
    ends: Ends, abort: Abort, length: int
) -> None:
    with ends() as (reader, writer), writing(writer, STREAM[:length]):
        assert peek_policy(reader, abort) is Absent.YET
        assert rest_of(reader) == STREAM[:length]


@each_kind
def test_another_stream_is_not_waited_for(ends: Ends, abort: Abort) -> None:
    with ends() as (reader, writer):
        os.write(writer, b"x")
        assert peek_policy(reader, abort) is Absent.ALTOGETHER
        os.close(writer)
        assert rest_of(reader) == b"x"


def test_a_file_is_looked_at_where_it_stands(abort: Abort, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(MORE + STREAM)
    with open(path, "rb", buffering=0) as file:
        file.seek(len(MORE))
        assert isinstance(peek_policy(file.fileno(), abort), Policy)
        assert file.tell() == len(MORE)


def test_a_file_that_ends_early(abort: Abort, tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(STREAM[:100])
    with open(path, "rb", buffering=0) as file:
        assert peek_policy(file.fileno(), abort) is Absent.YET


def test_what_cannot_be_looked_into(abort: Abort) -> None:
    with open("/dev/zero", "rb") as file:
        assert peek_policy(file.fileno(), abort) is Absent.ALTOGETHER


@each_kind
@pytest.mark.parametrize("front", [b"", STREAM[:100]])
def test_an_abort_ends_the_wait(ends: Ends, abort: Abort, front: bytes) -> None:
    with ends() as (reader, writer), open(writer, "wb", buffering=0) as file:
        file.write(front)
        later = threading.Timer(0.2, abort.request, (errno.ECANCELED, "given up"))
        later.start()
        with pytest.raises(OSError, match="given up"):
            peek_policy(reader, abort)
        later.join()
