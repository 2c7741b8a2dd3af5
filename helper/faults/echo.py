"""Waiting for libzmq's own thread."""

from __future__ import annotations

import os

import zmq


class Echo:
    """Tells when what was sent before is in the kernel: libzmq's own thread writes it, some time
    after it was told to, and a process that ends in between has said nothing.

    For a `context` with one such thread (ZMQ_IO_THREADS), as it is by default.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._sockets: list[zmq.Socket[bytes]] = []

    def wait(self) -> None:
        """A message to ourselves follows what was sent: it comes back only once the thread has
        been around its loop, and has written before whatever the other end leaves room for."""
        if not self._sockets:
            self._sockets = [self._context.socket(kind) for kind in (zmq.PUSH, zmq.PULL)]
            out, back = self._sockets
            endpoint = f"ipc://@{os.urandom(16).hex()}"  # abstract: it leaves no file
            back.bind(endpoint)
            out.connect(endpoint)
        out, back = self._sockets
        out.send(b"")
        back.recv()

    def close(self) -> None:
        """Before the context is ended."""
        for socket in self._sockets:
            socket.close(linger=0)
