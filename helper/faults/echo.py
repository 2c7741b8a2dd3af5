"""Waiting for libzmq's own thread."""

from __future__ import annotations

import os

import zmq


class Echo:
    """Waits until what was sent before is in the kernel. libzmq's own thread writes it some time
    later, and a process that ends in between has sent nothing.

    `context` has one such thread (ZMQ_IO_THREADS), which is the default.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._context = context
        self._sockets: list[zmq.Socket[bytes]] = []

    def wait(self) -> None:
        """Send a message to ourselves: it comes back only after the thread has been around its
        loop, and has written whatever the other end has room for."""
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
        """Call it before the context is terminated."""
        for socket in self._sockets:
            socket.close(linger=0)
