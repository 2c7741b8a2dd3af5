"""A Unix socket server that a test writes as a function of its connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

LIMIT = 10.0


@contextmanager
def serving(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Pass one connection to `path` to `serve`, in a thread. The connection is closed when it
    returns; if it raises, the test fails."""
    failures: list[BaseException] = []
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.settimeout(LIMIT)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        try:
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(LIMIT)
                serve(connection)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(2 * LIMIT)
        listener.close()
    assert not thread.is_alive()
    assert failures == []


def read_exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        assert part, "the client has disconnected"
        data += part
    return data
