"""A tunnel over a link that breaks, and with whom it is made."""

from __future__ import annotations

import os
import random
import select
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from functools import partial

import pytest

from tests.waiting import wait_for
from xen_save_helper.helper.postcopy_link.tunnel import (
    Keys,
    Tunnel,
    TunnelClient,
    TunnelServer,
    new_keys,
)

pytestmark = pytest.mark.timeout(120)

SIZE = 6 << 20


class Link:
    """Carries connections to `port`, until they are `cut`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.carried = 0
        self.made = 0
        self._ends: list[socket.socket] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self) -> None:
        for end in list(self._ends):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        while not self._stopping:
            ready, _, _ = select.select([self._listener, *other], [], [], 0.05)
            for end in ready:
                if end is self._listener:
                    near = self._listener.accept()[0]
                    try:
                        far = socket.create_connection(("127.0.0.1", self._target))
                    except OSError:
                        near.close()
                        continue
                    other[near], other[far] = far, near
                    self._ends = list(other)
                    self.made += 1
                elif end in other:
                    self._carry(end, other)
        for end in other:
            end.close()

    def _carry(self, end: socket.socket, other: dict[socket.socket, socket.socket]) -> None:
        try:
            data = end.recv(1 << 16)
            if data:
                other[end].sendall(data)
                self.carried += len(data)
                return
        except OSError:
            pass
        for closed in (end, other.pop(end)):
            other.pop(closed, None)
            closed.close()
        self._ends = list(other)


@contextmanager
def tunnel(keys: Keys | None = None, linger: float = 10.0) -> Iterator[tuple[Tunnel, Link, Tunnel]]:
    """Server, link and client, the client with `keys`, or with those that the server wants. When
    they are closed, each has `linger` seconds for what is left."""
    ours, theirs = new_keys(), new_keys()
    with ExitStack() as stack:
        server = TunnelServer("127.0.0.1", 0, ours, theirs.public)
        stack.callback(server.close, linger)
        link = stack.enter_context(closing(Link(server.port)))
        client = TunnelClient("127.0.0.1", link.port, keys or theirs, ours.public)
        stack.callback(client.close, linger)
        yield server, link, client


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


def test_nobody_without_the_key_is_heard() -> None:
    with tunnel(new_keys(), linger=0.1) as (server, link, client), ThreadPoolExecutor(1) as pool:
        pool.submit(send, client, b"let me in").result(10)
        wait_for(lambda: link.carried > 300, "it has tried")
        assert not select.select([server.fileno()], [], [], 1.0)[0]


def test_a_port_that_is_taken_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(OSError, match="Address already in use"),
    ):
        TunnelServer("127.0.0.1", taken.getsockname()[1], new_keys(), new_keys().public)
