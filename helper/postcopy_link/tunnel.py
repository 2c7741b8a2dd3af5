"""A stream of bytes in both directions, authenticated and encrypted, that outlives its connection.

It runs over ZeroMQ's CURVE. ZeroMQ makes a broken connection anew, but forgets what was on its way:
so each side numbers its bytes, keeps those that the other has not confirmed, and sends them again.
Whoever reads and writes sees a socket of this machine that stands still for a while.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import zmq
import zmq.auth.thread

_FRAME: Final = struct.Struct("<QQB")
"""The number of the first byte, how many have been received, and whether these are the last."""
_AT_ONCE: Final = 1 << 18
_WINDOW: Final = 4 << 20
"""Bytes that may be on their way, unconfirmed."""
_AGAIN_SECONDS: Final = 1.0
"""After so long without a word, what is unconfirmed is sent again."""
_DOMAIN: Final = "postcopy"
"""For ZAP (ZeroMQ's RFC 27)."""
_LINGER_SECONDS: Final = 10.0
_LAST_WORD_MS: Final = 1000
_DEAD_LINK_MS: Final = 10_000
"""TCP_USER_TIMEOUT: after so long without an acknowledgement the connection is made anew."""


class Keys(NamedTuple):
    """A pair of CURVE's, in Z85."""

    public: bytes
    secret: bytes


def new_keys() -> Keys:
    return Keys(*zmq.curve_keypair())


class Tunnel:
    """One end. `fileno` is a socket whose other end is the tunnel: what is written to it can be
    read from the other side's, in order, once."""

    def __init__(self, connect: Callable[[zmq.Context[Any], zmq.Socket[bytes]], None]) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.PAIR)
        self._near, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._socket.setsockopt(zmq.LINGER, _LAST_WORD_MS)
        self._socket.setsockopt(zmq.TCP_MAXRT, _DEAD_LINK_MS)
        self._socket.setsockopt(zmq.SNDHWM, 64)
        self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._unconfirmed = bytearray()
        self._confirmed = 0
        self._received = 0
        self._to_give = bytearray()
        self._ours_ended = self._ours_told = self._theirs_ended = self._theirs_told = False
        self._heard = time.monotonic()
        self._closing = False
        self._stop = threading.Event()
        try:
            connect(self._context, self._socket)
        except BaseException:
            self._near.close()
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)
        self._thread.start()

    def fileno(self) -> int:
        return self._near.fileno()

    def close(self, linger: float = _LINGER_SECONDS) -> None:
        """Send what is left, for so many seconds at most, and end."""
        self._end(linger)
        self._release()

    def _release(self) -> None:
        self._far.close()
        self._socket.close()
        self._context.term()

    def _end(self, linger: float) -> None:
        self._closing = True
        self._near.close()
        self._thread.join(linger)
        self._stop.set()
        self._thread.join()

    # In the thread.

    def _run(self) -> None:
        poller = zmq.Poller()
        while not self._stop.is_set() and not (
            self._closing and self._ours_told and self._theirs_ended
        ):
            poller.register(self._socket, zmq.POLLIN)
            events = select.POLLIN if self._may_take() else 0
            poller.register(self._far.fileno(), events | (select.POLLOUT if self._to_give else 0))
            ready = dict(poller.poll(100))
            if self._socket in ready:
                self._hear()
            if ready.get(self._far.fileno(), 0) & (select.POLLOUT | select.POLLERR):
                self._give()
            if self._may_take():
                self._take()
            if time.monotonic() - self._heard > _AGAIN_SECONDS:
                self._say_again()

    def _may_take(self) -> bool:
        return not self._ours_ended and len(self._unconfirmed) < _WINDOW

    def _take(self) -> None:
        try:
            data = self._far.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._ours_ended = True
        start = self._confirmed + len(self._unconfirmed)
        self._unconfirmed += data
        self._say(start, data)

    def _say(self, start: int, data: bytes) -> None:
        last = self._ours_ended and start + len(data) == self._confirmed + len(self._unconfirmed)
        try:
            # Our knowledge of their end is confirmed as one byte more.
            confirmed = self._received + self._theirs_ended
            self._socket.send(_FRAME.pack(start, confirmed, last) + data, zmq.NOBLOCK)
        except zmq.Again:
            pass  # nobody is there: it will be sent again

    def _say_again(self) -> None:
        self._heard = time.monotonic()
        for at in range(0, max(1, len(self._unconfirmed)), _AT_ONCE):
            self._say(self._confirmed + at, bytes(self._unconfirmed[at : at + _AT_ONCE]))

    def _hear(self) -> None:
        fresh = False
        while True:
            try:
                frame = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            if len(frame) < _FRAME.size:
                continue
            start, confirmed, last = _FRAME.unpack_from(frame)
            self._confirm(confirmed)
            data = memoryview(frame)[_FRAME.size :]
            skip = self._received - start
            if 0 <= skip <= len(data):
                self._to_give += data[skip:]
                self._received += len(data) - skip
                self._theirs_ended = self._theirs_ended or bool(last)
            fresh = fresh or bool(data) or bool(last)
        self._heard = time.monotonic()
        if self._to_give or self._theirs_ended:
            self._give()
        if fresh:
            self._say(self._confirmed + len(self._unconfirmed), b"")

    def _confirm(self, confirmed: int) -> None:
        new = confirmed - self._confirmed
        if self._ours_ended and new == len(self._unconfirmed) + 1:
            self._ours_told = True
            new -= 1
        if 0 < new <= len(self._unconfirmed):
            del self._unconfirmed[:new]
            self._confirmed = confirmed

    def _give(self) -> None:
        try:
            while self._to_give:
                del self._to_give[: self._far.send(self._to_give[:_AT_ONCE])]
        except BlockingIOError:
            return
        except OSError:
            # Nobody reads any more.
            self._to_give.clear()
        if self._theirs_ended and not self._to_give and not self._theirs_told:
            self._theirs_told = True
            try:
                self._far.shutdown(socket.SHUT_WR)
            except OSError:
                pass


class TunnelServer(Tunnel):
    """Listens on `address` (an IP address), on `port`, 0 for any that is free; takes whoever has
    the secret key of `client_key`. Raises OSError."""

    def __init__(self, address: str, port: int, keys: Keys, client_key: bytes) -> None:
        self.port = port
        self._authenticator: Any = None

        def listen(context: zmq.Context[Any], sock: zmq.Socket[bytes]) -> None:
            auth = zmq.auth.thread.ThreadAuthenticator(context)
            auth.start()
            auth.configure_curve_callback(_DOMAIN, credentials_provider=_Only(client_key))
            self._authenticator = auth
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            sock.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
            try:
                sock.bind(f"tcp://{_bracketed(address)}:{port or '*'}")
            except zmq.ZMQError as error:
                auth.stop()
                raise OSError(
                    error.errno, f"{address}:{port}: {os.strerror(error.errno or 0)}"
                ) from error
            bound = sock.getsockopt(zmq.LAST_ENDPOINT)
            assert isinstance(bound, bytes)
            self.port = int(bound.rstrip(b"\0").rpartition(b":")[2])

        super().__init__(listen)

    def close(self, linger: float = _LINGER_SECONDS) -> None:
        self._end(linger)
        self._authenticator.stop()
        super().close(0)


class TunnelClient(Tunnel):
    """Connects, now or later, and again whenever the connection breaks."""

    def __init__(self, address: str, port: int, keys: Keys, server_key: bytes) -> None:
        def connect(_context: zmq.Context[Any], sock: zmq.Socket[bytes]) -> None:
            sock.setsockopt(zmq.CURVE_SERVERKEY, server_key)
            sock.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            sock.connect(f"tcp://{_bracketed(address)}:{port}")

        super().__init__(connect)


class _Only:
    """zmq.auth's credentials provider."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key == self._key


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address
