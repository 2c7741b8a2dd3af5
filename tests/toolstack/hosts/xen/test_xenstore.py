"""The xenstore client, against a daemon that follows the wire protocol as the header defines it
(struct xsd_sockmsg), or breaks it."""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.toolstack.hosts.xen.scripted_server import read_exactly, serving
from xen_save_helper.helper.hypervisors.xen.xenstore import Event, Xenstore

pytestmark = pytest.mark.usefixtures("no_leaks")

DIRECTORY, READ, WATCH, START, END, WRITE, WATCH_EVENT, ERROR, RESUME = (
    1,
    2,
    4,
    6,
    7,
    11,
    15,
    16,
    18,
)
GET_PERMS, SET_PERMS = 3, 14


class Daemon:
    """xenstored's end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.request_id = 0

    def hear(self) -> tuple[int, int, bytes]:
        """(type, transaction, payload) of the next request."""
        kind, self.request_id, transaction, length = struct.unpack(
            "=IIII", read_exactly(self._connection, 16)
        )
        return kind, transaction, read_exactly(self._connection, length)

    def say(self, kind: int, payload: bytes, request_id: int | None = None) -> None:
        number = self.request_id if request_id is None else request_id
        self._connection.sendall(struct.pack("=IIII", kind, number, 0, len(payload)) + payload)

    def fires(self, path: bytes, token: bytes) -> None:
        self.say(WATCH_EVENT, path + b"\0" + token + b"\0", 0)


Serve = Callable[[Daemon], None]
Start = Callable[..., Xenstore]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a daemon, and returns the client that is connected to it."""
    path = tmp_path / "socket"
    monkeypatch.setenv("XENSTORED_PATH", str(path))
    running = []

    def start(serve: Serve, timeout: float = 5) -> Xenstore:
        server = serving(path, lambda connection: serve(Daemon(connection)))
        server.__enter__()
        client = Xenstore(timeout=timeout)
        running.append((server, client))
        return client

    yield start
    for server, client in running:
        client.close()
        server.__exit__(None, None, None)


def test_what_is_asked_and_answered(start: Start) -> None:
    heard = []

    def serve(daemon: Daemon) -> None:
        for kind, payload in ((READ, b"pvh1"), (DIRECTORY, b"0\x001\0"), (WRITE, b"OK\0")):
            heard.append(daemon.hear())
            daemon.say(kind, payload)

    xenstore = start(serve)
    assert xenstore.read("/local/domain/1/name") == b"pvh1"
    assert xenstore.directory("/local/domain") == ["0", "1"]
    xenstore.write("/a", b"suspend")
    assert heard == [
        (READ, 0, b"/local/domain/1/name\0"),
        (DIRECTORY, 0, b"/local/domain\0"),
        (WRITE, 0, b"/a\0suspend"),
    ]


def test_who_may_do_what_with_a_node(start: Start) -> None:
    heard = []

    def serve(daemon: Daemon) -> None:
        for kind, answer in ((GET_PERMS, b"n5\0r0\0"), (SET_PERMS, b"OK\0"), (ERROR, b"ENOENT\0")):
            heard.append(daemon.hear())
            daemon.say(kind, answer)

    xenstore = start(serve)
    assert xenstore.permissions("/a") == ["n5", "r0"]
    xenstore.set_permissions("/a", ["n0", "r5"])
    with pytest.raises(FileNotFoundError, match="GET_PERMS /b: ENOENT"):
        xenstore.permissions("/b")
    assert heard == [
        (GET_PERMS, 0, b"/a\0"),
        (SET_PERMS, 0, b"/a\0n0\0r5\0"),
        (GET_PERMS, 0, b"/b\0"),
    ]


def test_a_missing_node_is_none_and_other_errors_have_their_errno(start: Start) -> None:
    def serve(daemon: Daemon) -> None:
        for answer in (b"ENOENT\0", b"ENOENT\0", b"EACCES\0", b"EMARTIAN\0"):
            daemon.hear()
            daemon.say(ERROR, answer)

    xenstore = start(serve)
    assert xenstore.read("/a") is None
    assert xenstore.directory("/a") == []
    with pytest.raises(PermissionError, match="READ /a: EACCES"):
        xenstore.read("/a")
    with pytest.raises(OSError, match="EMARTIAN") as caught:
        xenstore.read("/a")
    assert caught.value.errno == errno.EIO


def test_watches_fire_between_answers_and_wake_a_poll(start: Start) -> None:
    go, over = threading.Event(), threading.Event()

    def serve(daemon: Daemon) -> None:
        daemon.hear()
        daemon.say(WATCH, b"OK\0")
        daemon.fires(b"@releaseDomain", b"release")
        daemon.hear()
        daemon.fires(b"/a/b", b"control")
        daemon.say(READ, b"x")
        assert go.wait(5)
        daemon.fires(b"/a", b"control")
        assert over.wait(5)

    xenstore = start(serve)
    xenstore.watch("@releaseDomain", "release")
    assert xenstore.read("/a") == b"x"
    assert xenstore.take_events() == [Event("@releaseDomain", "release"), Event("/a/b", "control")]
    assert xenstore.take_events() == []
    poll = select.poll()
    poll.register(xenstore.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    go.set()
    assert poll.poll(5000)
    assert xenstore.take_events() == [Event("/a", "control")]
    over.set()


def test_a_transaction_that_another_one_spoils_is_retried(start: Start) -> None:
    heard = []

    def serve(daemon: Daemon) -> None:
        for number, end in ((b"7\0", b"EAGAIN\0"), (b"8\0", b"OK\0")):
            heard.append(daemon.hear())
            daemon.say(START, number)
            heard.append(daemon.hear())
            daemon.say(READ, b"suspend")
            heard.append(daemon.hear())
            daemon.say(END if end == b"OK\0" else ERROR, end)

    xenstore = start(serve)
    assert xenstore.transact(lambda transaction: xenstore.read("/a", transaction)) == b"suspend"
    once = [(START, 0, b"\0"), (READ, 7, b"/a\0"), (END, 7, b"T\0")]
    assert heard == once + [(kind, 8 if t else 0, payload) for kind, t, payload in once]


def test_a_failure_ends_the_transaction(start: Start) -> None:
    heard = []

    def serve(daemon: Daemon) -> None:
        daemon.hear()
        daemon.say(START, b"7\0")
        heard.append(daemon.hear())
        daemon.say(END, b"OK\0")

    xenstore = start(serve)

    def work(_transaction: int) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        xenstore.transact(work)
    assert heard == [(END, 7, b"F\0")]


def test_a_transaction_that_never_fits_has_an_end(start: Start) -> None:
    def serve(daemon: Daemon) -> None:
        try:
            while True:
                kind, _, payload = daemon.hear()
                assert payload != b"F\0"
                daemon.say(*((START, b"7\0") if kind == START else (ERROR, b"EAGAIN\0")))
        except AssertionError:
            return

    xenstore = start(serve, timeout=0.5)
    with pytest.raises(TimeoutError, match="never fits"):
        xenstore.transact(lambda _transaction: None)
    xenstore.close()


def test_a_silent_daemon_is_an_error_within_the_limit(start: Start) -> None:
    over = threading.Event()

    def serve(daemon: Daemon) -> None:
        daemon.hear()
        assert over.wait(5)

    xenstore = start(serve, timeout=0.5)
    with pytest.raises(TimeoutError, match=r"has not answered for 0.5 s \(/a\)"):
        xenstore.read("/a")
    over.set()


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (lambda daemon: daemon.say(READ, b"x", daemon.request_id + 1), errno.EPROTO),
        (lambda daemon: daemon.say(WRITE, b"OK\0"), errno.EPROTO),
        (lambda daemon: daemon.say(READ, bytes(5000)), errno.EPROTO),
        (lambda daemon: None, errno.ECONNRESET),
    ],
    ids=["another request's", "another type", "too long", "gone"],
)
def test_a_daemon_that_breaks_the_protocol(start: Start, answer: Serve, number: int) -> None:
    def serve(daemon: Daemon) -> None:
        daemon.hear()
        answer(daemon)

    with pytest.raises(OSError, match="xenstored") as caught:
        start(serve).read("/a")
    assert caught.value.errno == number


def test_the_error_names_the_missing_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENSTORED_PATH", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=f"no xenstored at {tmp_path}/none"):
        Xenstore()
