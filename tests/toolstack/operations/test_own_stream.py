"""An operation's stream is its own: the caller may close its descriptors or reuse their numbers,
and a failure shuts it."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.toolstack.two_hosts import MEMORY, Side, run
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.inspect.walk import inspect
from xen_save_helper.toolstack.operations.domain_restore import domain_create_restore
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate, domain_suspend
from xen_save_helper.toolstack.operations.own_stream import OwnStream
from xen_save_helper.toolstack.xl.receive import receive

pytestmark = pytest.mark.usefixtures("no_leaks")


class Sink:
    """Reads a socket to its end, in a thread."""

    def __init__(self, socket_: socket.socket) -> None:
        self.data = b""
        self._socket = socket_
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while some := self._socket.recv(1 << 20):
            self.data += some

    def end(self) -> bytes:
        self._thread.join(30)
        assert not self._thread.is_alive(), "the stream does not end"
        return self.data


@pytest.fixture
def source(host_factory: HostFactory) -> Side:
    return Side(host_factory("source"))


@pytest.fixture
def destination(host_factory: HostFactory) -> Side:
    return Side(host_factory("destination"))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def replaced_by(path: Path, fd: int) -> Callable[[], None]:
    """The caller closes its descriptor, and another file gets its number."""

    def replace() -> None:
        other = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(other, fd)
        os.close(other)

    return replace


@pytest.mark.parametrize("event", ["save", "helper_started", "suspend_request"])
def test_a_save_whose_descriptor_becomes_another(
    source: Side, pair: tuple[socket.socket, socket.socket], tmp_path: Path, event: str
) -> None:
    ours, theirs = pair
    domid = source.host.create_guest("g", MEMORY, "random", type="hvm")
    other = tmp_path / "other"
    fd = ours.detach()
    sink = Sink(theirs)
    source.happenings.at(event, replaced_by(other, fd))
    try:
        saved = run(domain_suspend(source.ctx, domid, fd))
    finally:
        os.close(fd)
    assert saved.rc is Error.OK, saved
    assert [e.name for e in inspect(BytesIO(sink.end())) if e.layer == "libxl"][-1] == "END"
    assert other.read_bytes() == b""
    source.at_rest(domid)


@pytest.mark.parametrize("event", ["domain_created", "stream_read", "static_data_done"])
def test_a_restore_whose_descriptor_becomes_another(
    source: Side, destination: Side, tmp_path: Path, event: str
) -> None:
    domid = source.host.create_guest("g", MEMORY, "random")
    image, other = tmp_path / "image", tmp_path / "other"
    with image.open("wb") as file:
        assert run(domain_suspend(source.ctx, domid, file.fileno())).rc is Error.OK
    fd = os.open(image, os.O_RDONLY)
    destination.happenings.at(event, replaced_by(other, fd))
    try:
        config = source.host.config(domid)
        restored = run(domain_create_restore(destination.ctx, config, "g", fd))
    finally:
        os.close(fd)
    assert restored.rc is Error.OK, restored
    assert restored.domid is not None
    destination.host.unpause(restored.domid)
    assert destination.host.verify(restored.domid, 30).memory_ok
    source.at_rest(domid)


def test_they_are_closed_before_the_first_turn_is_over(
    source: Side, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A caller has to wait for nothing but the task's start."""
    ours, theirs = pair
    domid = source.host.create_guest("g", MEMORY, "random")
    sink = Sink(theirs)

    async def save() -> Error:
        task = asyncio.ensure_future(domain_suspend(source.ctx, domid, ours.fileno()))
        await asyncio.sleep(0)
        ours.close()
        return (await task).rc

    assert run(save()) is Error.OK
    sink.end()
    source.at_rest(domid)


class TestFailure:
    """The other side sees the end at once, though the caller keeps its descriptors open."""

    def test_of_a_save(self, source: Side, pair: tuple[socket.socket, socket.socket]) -> None:
        ours, theirs = pair
        sink = Sink(theirs)
        with OwnStream(ours.fileno()) as another:
            saved = run(domain_live_migrate(source.ctx, 77, ours.fileno(), 0, ours.fileno()))
            assert saved.rc is Error.DOMAIN_NOTFOUND
            assert sink.end() == b""
            assert another.stream_fd != ours.fileno()

    def test_of_a_restore(
        self, destination: Side, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        config = {"c_info": {"type": "none"}}
        restored = run(domain_create_restore(destination.ctx, config, "g", ours.fileno()))
        assert restored.rc is Error.INVAL
        assert theirs.recv(1) == b""

    def test_of_a_receive(
        self, destination: Side, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        ours, theirs = pair
        sink = Sink(theirs)
        theirs.sendall(b"no configuration at all" * 10)
        fd = ours.fileno()
        received = run(receive(destination.receiver_ctx, fd, fd, peer="a test"))
        assert not received.started
        assert b"migration receiver" in sink.end()

    def test_a_success_leaves_it_open(
        self, source: Side, pair: tuple[socket.socket, socket.socket]
    ) -> None:
        """The caller may go on using it."""
        ours, theirs = pair
        domid = source.host.create_guest("g", MEMORY, "random")
        sink = Sink(theirs)
        assert run(domain_suspend(source.ctx, domid, ours.fileno())).rc is Error.OK
        ours.sendall(b"and more")
        ours.shutdown(socket.SHUT_WR)
        assert sink.end().endswith(b"and more")
        source.at_rest(domid)
