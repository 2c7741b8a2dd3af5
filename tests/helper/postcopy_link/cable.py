"""A TCP connection that can be cut."""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Link:
    """Carries connections to `port`, until they are `cut`."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.carried = 0
        self.made = 0
        self._ends: list[socket.socket] = []
        self._near: list[socket.socket] = []
        self._keep_far = False
        self._held = False
        self._holds = threading.Event()
        """Whoever carries has seen `_held`."""
        self._flips = False
        self.lasts = 0
        """Bytes after which each connection is cut, 0 for any number."""
        self._carried_before = 0
        self._kept: list[socket.socket] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def cut(self, *, one_side: bool = False) -> None:
        """`one_side`: the server's does not notice."""
        self._keep_far = one_side
        for end in self._near if one_side else list(self._ends):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def flip(self) -> None:
        """Change an octet of what comes next from the server."""
        self._flips = True

    @contextmanager
    def held(self) -> Iterator[None]:
        """What comes from the server waits meanwhile."""
        self._held = True
        self._holds.wait()
        try:
            yield
        finally:
            self._held = False
            self._holds.clear()

    def waiting(self) -> int:
        """Bytes from the server that are `held`."""
        far = next(end for end in self._ends if end not in self._near)
        return int(struct.unpack("i", fcntl.ioctl(far, termios.FIONREAD, b"\0" * 4))[0])

    def close(self) -> None:
        self._stopping = True
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        other: dict[socket.socket, socket.socket] = {}
        while not self._stopping:
            if self._held:
                self._holds.set()
            ends = self._near if self._holds.is_set() else other
            ready, _, _ = select.select([self._listener, *ends], [], [], 0.05)
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
                    self._near = [near]
                    self._carried_before = self.carried
                    self.made += 1
                elif end in other:
                    self._carry(end, other)
        for end in (*other, *self._kept):
            end.close()

    def _carry(self, end: socket.socket, other: dict[socket.socket, socket.socket]) -> None:
        try:
            data = end.recv(1 << 16)
            if data and self._flips and end not in self._near:
                self._flips = False
                data = data[:-1] + bytes([data[-1] ^ 1])
            if data:
                other[end].sendall(data)
                self.carried += len(data)
                if self.lasts and self.carried - self._carried_before > self.lasts:
                    self.cut()
                return
        except OSError:
            pass
        far = other.pop(end)
        other.pop(far)
        end.close()
        self._near = []
        if self._keep_far:
            self._kept.append(far)
        else:
            far.close()
        self._ends = list(other)
