"""Packets of a SOCK_SEQPACKET socket between two processes of ours, each a JSON object."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any, Final

MOST: Final = 4096
"""The most bytes of a packet."""


def encode(packet: Mapping[str, Any]) -> bytes:
    return json.dumps(packet).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Empty at the end of the socket. Raises ValueError for what is no packet."""
    packet = json.loads(data) if data else {}
    if not isinstance(packet, dict):
        raise ValueError(f"{packet!r} is no object")
    return packet


def send(line: socket.socket, packet: Mapping[str, Any]) -> None:
    """Raises OSError."""
    line.sendall(encode(packet))


def receive(line: socket.socket) -> dict[str, Any]:
    """The next packet, empty at the end. Raises OSError, TimeoutError, ValueError."""
    return decode(line.recv(MOST))
