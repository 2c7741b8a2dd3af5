"""The two ends of a tunnel over ZeroMQ's CURVE: who listens, and who connects.

The server is a ROUTER and the client a DEALER with a name: a PAIR would stay with a connection that
has broken at the client's side alone, and never hear the next one.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from typing import Any, Final, NamedTuple

import zmq
import zmq.auth.thread

from xen_save_helper.helper.postcopy_link.tunnel import LINGER_SECONDS, Tunnel

_CLIENT: Final = b"pager"
_DOMAIN: Final = "postcopy"
"""For ZAP (ZeroMQ's RFC 27)."""


class Keys(NamedTuple):
    """A pair of CURVE's, in Z85."""

    public: bytes
    secret: bytes


def new_keys() -> Keys:
    return Keys(*zmq.curve_keypair())


class TunnelServer(Tunnel):
    """Listens on `address` (an IP address), on `port`, 0 for any that is free; takes whoever has
    the secret key of `client_key`. Raises OSError."""

    def __init__(self, address: str, port: int, keys: Keys, client_key: bytes) -> None:
        self._authenticator: Any = None
        bound = 0

        def listen(context: zmq.Context[Any], sock: zmq.Socket[bytes]) -> None:
            auth = zmq.auth.thread.ThreadAuthenticator(context)
            auth.start()
            auth.configure_curve_callback(_DOMAIN, credentials_provider=_Only(client_key))
            self._authenticator = auth
            sock.setsockopt(zmq.CURVE_SERVER, 1)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            sock.setsockopt(zmq.ZAP_DOMAIN, _DOMAIN.encode())
            sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
            # A client whose connection has broken comes again before that may be known here.
            sock.setsockopt(zmq.ROUTER_HANDOVER, 1)
            try:
                nonlocal bound
                bound = _bind(sock, address, port)
            except OSError:
                auth.stop()
                raise

        self._changing = threading.Lock()
        self._ended: socket.socket | None = None
        """The end of a session that is over, until `next_session`."""
        self._over: set[int] = set()
        super().__init__(zmq.ROUTER, address, port, listen)
        self._port = bound

    @property
    def port(self) -> int:
        return self._port

    def _move(self, address: str, port: int) -> int:
        return _bind(self._socket, address, port)

    def next_session(self) -> bool:
        """Whether another client has begun a session, which `fileno` is from now on; what was the
        descriptor, and has ended, is closed."""
        with self._changing:
            if self._ended is None:
                return False
            self._ended.close()
            self._ended = None
            return True

    def fileno(self) -> int:
        with self._changing:
            return (self._ended or self._near).fileno()

    def _admits(self, session: int) -> bool:
        if session in self._over:
            return False
        if session != self._session:
            if self._session:
                self._over.add(self._session)
                self._renew()
            self._session = session
        return True

    def _renew(self) -> None:
        with self._changing:
            self._far.close()
            if self._ended is None:
                self._ended = self._near
            else:
                self._near.close()
            self._begin()

    def _send(self, frame: bytes) -> None:
        if not self._session:
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        self._socket.send_multipart([_CLIENT, frame], zmq.NOBLOCK)

    def _receive(self) -> bytes:
        return self._socket.recv_multipart(zmq.NOBLOCK)[-1]

    def close(self, linger: float = LINGER_SECONDS) -> None:
        if self._ended is not None:
            self._ended.close()
        self._end(linger)
        self._authenticator.stop()
        super().close(0)


class TunnelClient(Tunnel):
    """Connects, now or later, and again whenever the connection breaks."""

    def __init__(self, address: str, port: int, keys: Keys, server_key: bytes) -> None:
        def connect(_context: zmq.Context[Any], sock: zmq.Socket[bytes]) -> None:
            sock.setsockopt(zmq.ROUTING_ID, _CLIENT)
            sock.setsockopt(zmq.CURVE_SERVERKEY, server_key)
            sock.setsockopt(zmq.CURVE_PUBLICKEY, keys.public)
            sock.setsockopt(zmq.CURVE_SECRETKEY, keys.secret)
            sock.connect(_endpoint(self._address, self._port))

        super().__init__(zmq.DEALER, address, port, connect, int.from_bytes(os.urandom(8)) or 1)

    def _move(self, address: str, port: int) -> int:
        self._socket.disconnect(_endpoint(self._address, self._port))
        self._socket.connect(_endpoint(address, port))
        return port

    def _anew(self) -> None:
        self._socket.close(0)
        self._socket = self._new_socket(zmq.DEALER)
        self._connect(self._context, self._socket)
        self._say_again()

    def _send(self, frame: bytes) -> None:
        self._socket.send(frame, zmq.NOBLOCK)

    def _receive(self) -> bytes:
        return self._socket.recv(zmq.NOBLOCK)


class _Only:
    """zmq.auth's credentials provider."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key == self._key


def _bind(sock: zmq.Socket[bytes], address: str, port: int) -> int:
    """Returns the port. Raises OSError that names what cannot be had."""
    try:
        sock.bind(_endpoint(address, port or "*"))
    except zmq.ZMQError as error:
        reason = os.strerror(error.errno or 0)
        raise OSError(error.errno, f"{address}:{port}: {reason}") from error
    bound = sock.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(bound, bytes)
    return int(bound.rstrip(b"\0").rpartition(b":")[2])


def _endpoint(address: str, port: int | str) -> str:
    host = f"[{address}]" if ":" in address else address
    return f"tcp://{host}:{port}"
