"""ZeroMQ's wire protocol (ZMTP 3.1, mechanism NULL) by hand, for peers that break it."""

from __future__ import annotations

import socket
import struct

GREETING = b"\xff" + bytes(8) + b"\x7f" + bytes([3, 1]) + b"NULL".ljust(20, b"\0") + bytes(32)
_COMMAND = 0x04
_LONG = 0x02


def connect(endpoint: str, socket_type: bytes = b"DEALER") -> socket.socket:
    """A connection whose handshake is done."""
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(10)
    peer.connect(endpoint.removeprefix("ipc://"))
    shake_hands(peer, socket_type)
    return peer


def shake_hands(peer: socket.socket, socket_type: bytes) -> None:
    peer.sendall(GREETING)
    _exactly(peer, len(GREETING))
    name, value = b"Socket-Type", socket_type
    body = b"\x05READY" + bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    peer.sendall(bytes([_COMMAND, len(body)]) + body)
    flags, _body = read_frame(peer)
    assert flags & _COMMAND


def message(body: bytes) -> bytes:
    """One message of one frame."""
    return b"\x02" + struct.pack(">Q", len(body)) + body


def read_frame(peer: socket.socket) -> tuple[int, bytes]:
    (flags,) = _exactly(peer, 1)
    size = struct.unpack(">Q", _exactly(peer, 8))[0] if flags & _LONG else _exactly(peer, 1)[0]
    return flags, _exactly(peer, size)


def skip_messages(peer: socket.socket, count: int) -> None:
    """Read until `count` messages have come; commands do not count."""
    while count:
        flags, _body = read_frame(peer)
        count -= not flags & _COMMAND


def _exactly(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = peer.recv(size - len(data))
        if not part:
            raise EOFError("the other end hung up")
        data += part
    return data
