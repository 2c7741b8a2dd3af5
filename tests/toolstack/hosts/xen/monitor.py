"""A server in place of QEMU's monitor."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}


class Monitor:
    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.fds: list[int] = []

    def say(self, message: object) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\r\n")

    def hear_or_end(self) -> dict[str, Any] | None:
        """The next request; None if the client has disconnected."""
        data, fds, _, _ = socket.recv_fds(self._connection, 65536, 1)
        self.fds += fds
        return json.loads(data) if data else None

    def hear(self) -> dict[str, Any]:
        request = self.hear_or_end()
        assert request is not None, "the client has disconnected"
        return request

    def open(self) -> None:
        """Greet the client, and answer the negotiation with which every client begins."""
        self.say(GREETING)
        request = self.hear()
        assert request["execute"] == "qmp_capabilities"
        self.say({"return": {}, "id": request["id"]})


Serve = Callable[[Monitor], None]
Start = Callable[[Serve], str]
"""Starts a server and returns the path at which it listens."""
