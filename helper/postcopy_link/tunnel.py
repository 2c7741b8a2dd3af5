"""A stream of bytes in both directions, authenticated and encrypted, that outlives its connection.

A session is what two processes have to say to each other. A client that has taken the place of one
that died begins another, and the server's side of the old one ends.

It runs over ZeroMQ (`curve` has the two ends). ZeroMQ makes a broken connection anew, but forgets
what was on its way: so each side numbers its bytes, keeps those that the other has not confirmed,
and sends them again. What is confirmed has been read there, so neither side holds more than a
`Window`. Whoever reads and writes sees a socket of this machine that stands still for a while.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from enum import IntEnum
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any, Final, NamedTuple

import zmq

from xen_save_helper.helper.postcopy_link.window import Window

_FRAME: Final = struct.Struct("<QQQB")
"""The session, the number of the first byte, how many have been received, and an `_End`, with
`_HEARD` if the other side's giving up has been heard."""
_HEARD: Final = 0x80
_AT_ONCE: Final = 1 << 16
"""Bytes of a frame: what of it has come when the connection breaks is lost, and a connection that
never lasts for a whole one brings nothing."""
_LONGEST: Final = 1 << 20
"""Bytes. A frame's length is not authenticated; one that says more breaks the connection."""
_FRAMES: Final = 64
"""The most that ZeroMQ has in its hands."""
_AGAIN_SECONDS: Final = 1.0
"""After so long without a word, what is unconfirmed is sent again."""
_STANDS_SECONDS: Final = 3.0
"""After so long without any of it confirmed, too."""
LINGER_SECONDS: Final = 10.0
_LAST_WORD_MS: Final = 1000
_GIVING_UP_SECONDS: Final = 60.0
"""As long as a window may take on a slow link."""
_GONE_SECONDS: Final = 5.0
"""The other side, which says something each second, has gone if it has said nothing for so long."""
_GIVING_UP_LEAST_SECONDS: Final = 1.0
_GIVING_UP_AGAIN_MS: Final = 200
_ORDER_SECONDS: Final = 5.0
_DEAD_LINK_MS: Final = 10_000
"""TCP_USER_TIMEOUT: after so long without an acknowledgement the connection is made anew. So it is
if ZeroMQ's own exchange of keys takes so long, or if a server hears nothing for so long."""
_ASK_MS: Final = 3000
"""How often ZeroMQ asks whether the other side is there."""
_ANEW_SECONDS: Final = 10.0
"""So long after the last word a client connects anew. ZeroMQ does so after an error of the network,
but never after one of its own protocol, as from an octet that was changed on its way."""


class _End(IntEnum):
    NOT_YET = 0
    LAST = 1
    """These bytes are the last."""
    GIVEN_UP = 2
    """None will come any more, not even those that are missing."""


class _Order(NamedTuple):
    """For the thread: to `Tunnel.move`."""

    address: str
    port: int
    moved: Future[None]


class Link(NamedTuple):
    """Where the server listens, or is reached, and for how many seconds nothing has been heard from
    the other side, which says something each second."""

    address: str
    port: int
    silent: float


class Tunnel:
    """One end. `fileno` is a socket whose other end is the tunnel: what is written to it can be
    read from the other side's, in order, once."""

    def __init__(
        self,
        kind: int,
        address: str,
        port: int,
        connect: Callable[[zmq.Context[Any], zmq.Socket[bytes]], None],
        session: int = 0,
    ) -> None:
        """`session` is 0 for the side that takes those of the other."""
        self._address, self._port = address, port
        self._session = session
        self._orders: SimpleQueue[_Order] = SimpleQueue()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._connect = connect
        self._socket = self._new_socket(kind)
        self._begin()
        self._closing = False
        self._given_up = False
        self._stop = threading.Event()
        try:
            connect(self._context, self._socket)
        except BaseException:
            self._near.close()
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="tunnel", daemon=True)
        self._thread.start()

    def _new_socket(self, kind: int) -> zmq.Socket[bytes]:
        sock = self._context.socket(kind)
        sock.setsockopt(zmq.LINGER, _LAST_WORD_MS)
        sock.setsockopt(zmq.TCP_MAXRT, _DEAD_LINK_MS)
        sock.setsockopt(zmq.HANDSHAKE_IVL, _DEAD_LINK_MS)
        sock.setsockopt(zmq.HEARTBEAT_IVL, _ASK_MS)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, _DEAD_LINK_MS)
        sock.setsockopt(zmq.MAXMSGSIZE, _LONGEST)
        sock.setsockopt(zmq.SNDHWM, _FRAMES)
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, 2000)
        self._made = time.monotonic()
        return sock

    def _begin(self) -> None:
        """A session."""
        self._near, self._far = socket.socketpair()
        self._far.setblocking(False)
        self._unconfirmed = bytearray()
        self._window = Window()
        self._said = 0
        """How many of the unconfirmed bytes have been given to ZeroMQ."""
        self._confirmed = 0
        self._received = 0
        self._to_give = bytearray()
        self._ours_ended = self._ours_told = self._theirs_ended = self._theirs_told = False
        self._they_gave_up = self._we_are_heard = False
        self._heard = self._went_on = time.monotonic()

    def fileno(self) -> int:
        return self._near.fileno()

    def link(self) -> Link:
        """From any thread."""
        return Link(self._address, self._port, time.monotonic() - self._heard)

    def move(self, address: str, port: int) -> Link:
        """Go another way from here on: a client connects to another address of its server, a server
        listens at another one, too. What is on its way is sent again there. From any thread.
        Raises OSError, ValueError."""
        address = str(ip_address(address))
        if not 0 <= port < 1 << 16:
            raise ValueError(f"{port} is no port")
        order = _Order(address, port, Future())
        self._orders.put(order)
        order.moved.result(_ORDER_SECONDS)
        return self.link()

    def close(self, linger: float = LINGER_SECONDS) -> None:
        """Send what is left, for so many seconds at most, and end."""
        self._end(linger)
        self._release()

    def give_up(self) -> None:
        """End at once. The other side reads the end, if it can be reached within some seconds,
        though perhaps not all that was written here."""
        self._given_up = True
        self.close(0)

    def _move(self, address: str, port: int) -> int:
        """In the thread; returns the port. Raises OSError."""
        raise NotImplementedError

    def _anew(self) -> None:
        """In the thread, after a long silence."""

    def _send(self, frame: bytes) -> None:
        """Raises zmq.ZMQError if nobody is there, or takes it."""
        raise NotImplementedError

    def _receive(self) -> bytes:
        """Raises zmq.Again if nothing is there."""
        raise NotImplementedError

    def _admits(self, session: int) -> bool:
        """In the thread: whether what is said in this session is for us."""
        return session == self._session

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
        # To be known to the other side.
        self._say_confirmed()
        while not self._stop.is_set() and not (
            self._closing and self._ours_told and self._theirs_ended
        ):
            poller = zmq.Poller()
            unsaid = self._said < len(self._unconfirmed)
            poller.register(self._socket, zmq.POLLIN | (zmq.POLLOUT if unsaid else 0))
            events = zmq.POLLIN if self._may_take() else 0
            poller.register(self._far.fileno(), events | (zmq.POLLOUT if self._to_give else 0))
            ready = dict(poller.poll(100))
            if ready.get(self._socket, 0) & zmq.POLLIN:
                self._hear()
            if ready.get(self._far.fileno(), 0) & (zmq.POLLOUT | zmq.POLLERR):
                self._give()
                self._say_confirmed()
            if self._may_take():
                self._take()
            self._say()
            if time.monotonic() - max(self._heard, self._went_on) > _AGAIN_SECONDS or (
                self._unconfirmed and time.monotonic() - self._went_on > _STANDS_SECONDS
            ):
                self._say_again()
            if time.monotonic() - max(self._heard, self._made) > _ANEW_SECONDS:
                self._anew()
            while not self._orders.empty():
                self._obey(self._orders.get())
        if self._given_up:
            self._say_given_up()

    def _say_given_up(self) -> None:
        """Until it is heard, after all that is on its way already: a process that ends takes with
        it what TCP has not brought yet."""
        now = time.monotonic()
        least, most = now + _GIVING_UP_LEAST_SECONDS, now + _GIVING_UP_SECONDS
        while not (self._we_are_heard or self._they_gave_up):
            self._say_part(len(self._unconfirmed), b"")
            if self._socket.poll(_GIVING_UP_AGAIN_MS):
                self._hear()
            now = time.monotonic()
            if now > most or now > max(least, self._heard + _GONE_SECONDS):
                return

    def _obey(self, order: _Order) -> None:
        try:
            self._port = self._move(order.address, order.port)
            self._address = order.address
        except OSError as error:
            order.moved.set_exception(error)
        else:
            order.moved.set_result(None)
            self._say_again()

    def _may_take(self) -> bool:
        return not self._ours_ended and len(self._unconfirmed) < self._window.size

    def _take(self) -> None:
        try:
            data = self._far.recv(_AT_ONCE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not self._unconfirmed:
            self._went_on = time.monotonic()
        self._unconfirmed += data
        if not data:
            self._ours_ended = True
            self._say_confirmed()

    def _say(self) -> None:
        """What ZeroMQ takes of what has not been said."""
        while self._said < len(self._unconfirmed):
            data = bytes(self._unconfirmed[self._said : self._said + _AT_ONCE])
            if not self._say_part(self._said, data):
                return
            self._said += len(data)
            self._window.sent(self._confirmed + self._said, time.monotonic())

    def _say_confirmed(self) -> None:
        self._say_part(len(self._unconfirmed), b"")

    def _say_part(self, at: int, data: bytes) -> bool:
        """Whether it is on its way."""
        end = _End.NOT_YET
        if self._given_up:
            end = _End.GIVEN_UP
        elif self._ours_ended and at + len(data) == len(self._unconfirmed):
            end = _End.LAST
        confirmed = self._received - len(self._to_give)
        if self._theirs_ended and not self._to_give:
            confirmed += 1  # their end
        flags = end | (_HEARD if self._they_gave_up else 0)
        try:
            self._send(_FRAME.pack(self._session, self._confirmed + at, confirmed, flags) + data)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EAGAIN, errno.EHOSTUNREACH):
                raise
            return False
        return True

    def _say_again(self) -> None:
        self._went_on = time.monotonic()
        self._said = 0
        # The way may be another one, and a confirmation does not tell of which sending it is.
        self._window = Window(self._confirmed)
        self._say_confirmed()

    def _hear(self) -> None:
        fresh = False
        while True:
            try:
                frame = self._receive()
            except zmq.Again:
                break
            if len(frame) < _FRAME.size:
                continue
            session, start, confirmed, flags = _FRAME.unpack_from(frame)
            if not self._admits(session):
                continue
            end = flags & ~_HEARD
            self._we_are_heard = self._we_are_heard or bool(flags & _HEARD)
            self._they_gave_up = self._they_gave_up or end == _End.GIVEN_UP
            self._confirm(confirmed)
            data = memoryview(frame)[_FRAME.size :]
            skip = self._received - start
            if 0 <= skip <= len(data):
                self._to_give += data[skip:]
                self._received += len(data) - skip
                self._theirs_ended = self._theirs_ended or end == _End.LAST
            self._theirs_ended = self._theirs_ended or self._they_gave_up
            fresh = fresh or bool(data) or bool(end)
        self._heard = time.monotonic()
        if self._to_give or self._theirs_ended:
            self._give()
        if fresh:
            self._say_confirmed()

    def _confirm(self, confirmed: int) -> None:
        new = confirmed - self._confirmed
        if self._ours_ended and new == len(self._unconfirmed) + 1:
            self._ours_told = True
            new -= 1
        if 0 < new <= len(self._unconfirmed):
            del self._unconfirmed[:new]
            self._confirmed = confirmed
            self._said = max(0, self._said - new)
            self._went_on = time.monotonic()
            self._window.confirmed(confirmed, self._went_on)

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
