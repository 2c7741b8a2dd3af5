"""A tunnel over a link that breaks, and with whom it is made."""

from __future__ import annotations

import os
import random
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from typing import Any

import pytest
import zmq

from tests.helper.postcopy_link.cable import Link
from tests.waiting import wait_for
from xen_save_helper.helper.postcopy_link.curve import (
    Keys,
    TunnelClient,
    TunnelServer,
    new_keys,
)
from xen_save_helper.helper.postcopy_link.tunnel import Tunnel

pytestmark = pytest.mark.timeout(120)

SIZE = 6 << 20


@contextmanager
def tunnel(keys: Keys | None = None) -> Iterator[tuple[Tunnel, Link, Tunnel]]:
    """Server, link and client, the client with `keys`, or with those that the server wants."""
    ours, theirs = new_keys(), new_keys()
    server = TunnelServer("127.0.0.1", 0, ours, theirs.public)
    try:
        with closing(Link(server.port)) as link:
            client = TunnelClient("127.0.0.1", link.port, keys or theirs, ours.public)
            try:
                yield server, link, client
            finally:
                client.close(0)
    finally:
        if server.fileno() >= 0:
            server.close(0)


def send(end: Tunnel, data: bytes) -> None:
    with socket.socket(fileno=os.dup(end.fileno())) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)


def receive(end: Tunnel) -> bytes:
    """All until its end."""
    data = bytearray()
    while part := os.read(end.fileno(), 1 << 20):
        data += part
    return bytes(data)


def carries(link: Link, connection: int) -> bool:
    return link.made >= connection and link.carried > connection * SIZE // 30


def octets(seed: int) -> bytes:
    return random.Random(seed).randbytes(SIZE)


@pytest.mark.parametrize("cuts", [0, 20])
def test_both_get_what_the_other_has_sent(cuts: int) -> None:
    with tunnel() as (server, link, client), ThreadPoolExecutor(4) as pool:
        got = [pool.submit(receive, end) for end in (server, client)]
        sent = [pool.submit(send, end, octets(seed)) for seed, end in ((1, client), (2, server))]
        for number in range(1, cuts + 1):
            wait_for(partial(carries, link, number), "it carries again", 60)
            link.cut()
        for one in sent:
            one.result(60)
        assert [one.result(60) for one in got] == [octets(1), octets(2)]
        assert link.made == cuts + 1


def test_a_connection_whose_end_the_server_has_not_seen() -> None:
    """The client comes again, and the server has both."""
    with tunnel() as (server, link, client), ThreadPoolExecutor(2) as pool:
        got = pool.submit(receive, client)
        sent = pool.submit(send, server, octets(4))
        for number in (1, 2, 3):
            wait_for(partial(carries, link, number), "it carries again", 60)
            link.cut(one_side=True)
        sent.result(60)
        assert got.result(60) == octets(4)
        assert link.made == 4


class Lossy(Tunnel):
    """An end whose frames are lost, or come twice, as chance has it."""

    def __init__(self, seed: int, port: int = 0) -> None:
        self._chance = random.Random(seed)
        bound = 0

        def connect(_context: zmq.Context[Any], sock: zmq.Socket[bytes]) -> None:
            nonlocal bound
            if port:
                sock.connect(f"tcp://127.0.0.1:{port}")
            else:
                bound = sock.bind_to_random_port("tcp://127.0.0.1")

        super().__init__(zmq.PAIR, "127.0.0.1", port, connect)
        self.port = bound

    def _send(self, frame: bytes) -> None:
        for _ in range(self._chance.choice((0, 1, 1, 1, 2))):
            self._socket.send(frame, zmq.NOBLOCK)

    def _receive(self) -> bytes:
        return self._socket.recv(zmq.NOBLOCK)


def test_an_octet_that_is_changed_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """ZeroMQ's client does not connect again by itself then."""
    monkeypatch.setattr("xen_save_helper.helper.postcopy_link.tunnel._ANEW_SECONDS", 1.5)
    with tunnel() as (server, link, client), ThreadPoolExecutor(1) as pool:
        data = octets(5)
        sent = pool.submit(send, server, data)
        wait_for(lambda: link.carried > 1 << 17, "it carries")
        link.flip()
        assert receive(client) == data
        sent.result(10)
        assert link.made == 2


def test_a_connection_that_is_soon_broken_each_time() -> None:
    """What one lasts for is less than ZeroMQ may have in its hands, and more than a frame."""
    with tunnel() as (server, link, client), ThreadPoolExecutor(1) as pool:
        data = octets(6)[: 1 << 19]
        link.lasts = 200_000
        sent = pool.submit(send, server, data)
        assert receive(client) == data
        sent.result(10)
        assert link.made > 2


@pytest.mark.parametrize("seed", [1, 2])
def test_frames_that_are_lost_or_come_twice(seed: int) -> None:
    one = Lossy(seed)
    other = Lossy(seed + 100, one.port)
    data = [random.Random(seed).randbytes(1 << 20) for _ in range(2)]
    with closing(one), closing(other), ThreadPoolExecutor(4) as pool:
        got = [pool.submit(receive, end) for end in (one, other)]
        sent = [pool.submit(send, end, part) for end, part in ((other, data[0]), (one, data[1]))]
        for done in sent:
            done.result(60)
        assert [each.result(60) for each in got] == data


def test_nobody_without_the_key_is_heard() -> None:
    with tunnel(new_keys()) as (server, link, client), ThreadPoolExecutor(1) as pool:
        pool.submit(send, client, b"let me in").result(10)
        wait_for(lambda: link.carried > 300, "it has tried")
        assert not select.select([server.fileno()], [], [], 1.0)[0]


def test_a_port_that_is_taken_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Address already in use"),
    ):
        TunnelServer("127.0.0.1", taken.getsockname()[1], new_keys(), new_keys().public)


def test_neither_side_holds_much_for_a_reader_that_stands_still() -> None:
    with tunnel() as (server, link, client), ThreadPoolExecutor(1) as pool:
        data = random.Random(3).randbytes(16 << 20)
        sent = pool.submit(send, server, data)
        wait_for(lambda: link.carried > 1 << 17, "a window is on its way")
        before = -1
        while before != link.carried:
            # Each side says something each second; nothing that is new.
            before = link.carried
            select.select([], [], [], 0.3)
        # A page that is asked for comes after all this.
        assert link.carried < 2 << 20
        assert receive(client) == data
        sent.result(60)


def test_another_way() -> None:
    """The link is cut for good; both go on over another one."""
    with tunnel() as (server, link, client), ThreadPoolExecutor(2) as pool:
        got = pool.submit(receive, client)
        sent = pool.submit(send, server, octets(5))
        wait_for(lambda: link.carried > SIZE // 4, "it carries")
        link.close()
        moved = server.move("127.0.0.2", 0)
        assert moved.address == "127.0.0.2"
        client.move("127.0.0.2", moved.port)
        sent.result(60)
        assert got.result(60) == octets(5)


def test_who_gives_up_is_heard_before_all_has_been_read() -> None:
    with tunnel() as (server, link, client), ThreadPoolExecutor(1) as pool:
        sent = pool.submit(send, server, octets(6))
        wait_for(lambda: link.carried > SIZE // 2, "a window is on its way")
        server.give_up()
        assert isinstance(sent.exception(10), OSError)
        data = receive(client)
        assert octets(6).startswith(data)
        assert len(data) < SIZE


def test_who_gives_up_is_heard_though_the_link_breaks_then() -> None:
    """What had left the process is lost on the way."""
    with tunnel() as (server, link, client), ThreadPoolExecutor(2) as pool:
        pool.submit(send, client, b"here").result(10)
        assert receive(server) == b"here"
        with link.held():
            before = link.waiting()
            given_up = pool.submit(server.give_up)
            wait_for(lambda: link.waiting() > before, "it is on its way")
            link.cut()
        given_up.result(30)
        assert pool.submit(receive, client).result(10) == b""
        assert link.made == 2


@pytest.mark.parametrize(
    ("address", "port", "error", "text"),
    [
        ("192.0.2.7", 0, OSError, "192.0.2.7:0: Cannot assign requested address"),
        ("here", 0, ValueError, "'here' does not appear to be an IPv4 or IPv6 address"),
        ("127.0.0.1", 65536, ValueError, "65536 is no port"),
    ],
)
def test_where_it_cannot_go(address: str, port: int, error: type[Exception], text: str) -> None:
    with tunnel() as (server, _link, client), ThreadPoolExecutor(1) as pool:
        with pytest.raises(error, match=text):
            server.move(address, port)
        # It has stayed.
        sent = pool.submit(send, server, b"here")
        assert receive(client) == b"here"
        sent.result(10)


def test_another_takes_the_place_of_a_client_that_died() -> None:
    """The server's side of the old session ends, and what was said in it reaches nobody else."""
    ours, theirs = new_keys(), new_keys()
    with ExitStack() as stack:
        server = TunnelServer("127.0.0.1", 0, ours, theirs.public)
        stack.callback(server.close, 0)
        first = TunnelClient("127.0.0.1", server.port, theirs, ours.public)
        stack.callback(first.close, 0)
        os.write(first.fileno(), b"first")
        assert os.read(server.fileno(), 100) == b"first"
        old = server.fileno()
        os.write(old, b"for the first")
        assert not server.next_session()
        second = TunnelClient("127.0.0.1", server.port, theirs, ours.public)
        stack.callback(second.close, 0)
        os.write(second.fileno(), b"second")
        assert os.read(old, 100) == b""
        assert server.fileno() == old
        assert server.next_session()
        assert os.read(server.fileno(), 100) == b"second"
        os.write(server.fileno(), b"for the second")
        assert os.read(second.fileno(), 100) == b"for the second"
        # It was not dead, but nobody hears it any more.
        os.write(first.fileno(), b"first again")
        os.write(second.fileno(), b"second again")
        assert os.read(server.fileno(), 100) == b"second again"
        assert not server.next_session()
