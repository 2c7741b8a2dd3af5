"""The helper's end of the conversation with our controller, over ZeroMQ.

If the connection breaks, the socket's monitor tells the abort watcher, and the helper ends through
its error path. None of libzmq's own timeouts is used: its heartbeats and its handshake limit take a
stopped process for a dead one.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

import zmq

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import ChannelError, printable
from xen_save_helper.helper.patience import controller_stands_still
from xen_save_helper.ipc_schema.channel import msgpack_codec
from xen_save_helper.ipc_schema.channel.authentication import NONCE_SIZE
from xen_save_helper.ipc_schema.channel.messages import MAX_BODY, callbacks_of
from xen_save_helper.ipc_schema.channel.turn_taking import (
    ALWAYS_PROVIDED,
    HelperEnd,
    Turn,
    TurnError,
)
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import DecodeError

_LOOK_UP_MILLISECONDS: Final = 100
"""How often a wait for an answer checks whether the controller is gone."""
_EAGER_SECONDS: Final = 0.0003
"""How long to wait busily for an answer: waking up takes longer than the other end needs for a sync
answer."""
# As integers: pyzmq's own are enums, which cost more than their use at each message.
_EVENTS: Final = int(zmq.EVENTS)
_POLLIN: Final = int(zmq.POLLIN)
_RCVMORE: Final = int(zmq.RCVMORE)
_FAREWELL_MILLISECONDS: Final = 1000
"""How long the last messages may take to leave."""


class ZmqChannel:
    """`Channel` over a DEALER socket. `answer_limit`, in seconds (0: none), applies to each
    callback's answer, and to a controller that takes no messages."""

    def __init__(self, endpoint: str, secret: bytes, answer_limit: float = 0.0) -> None:
        self._turns = HelperEnd(secret, os.urandom(NONCE_SIZE))
        self._abort: Abort | None = None
        self._over: ChannelError | None = None
        self._left = False
        self._provided: frozenset[str] = ALWAYS_PROVIDED
        self._answer_limit = answer_limit
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_BODY),
            (zmq.RCVTIMEO, _LOOK_UP_MILLISECONDS),
            (zmq.SNDTIMEO, _LOOK_UP_MILLISECONDS),
            (zmq.HANDSHAKE_IVL, 0),
            # The conversation is one connection: a new one would not be to the same peer.
            (zmq.RECONNECT_IVL, -1),
        ):
            self._socket.setsockopt(option, value)
        self._monitor = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._monitor_lock = threading.Lock()
        self._monitored = True
        self._monitor_fd = int(self._monitor.getsockopt(zmq.FD))
        self._socket.connect(endpoint)

    def hello(self) -> None:
        self._send("hello", self._turns.hello(os.getpid()))

    def wait_for_start(self, lifeline: int, limit: float) -> dict[str, Any]:
        """Wait for `start`; returns its fields.

        Raises ChannelError: ETIMEDOUT after `limit` seconds, EPIPE if the controller dies.
        """
        over = _limit(limit)
        poll = select.poll()
        poll.register(lifeline, 0)  # POLLHUP only
        while True:
            received = self._receive()
            if received is not None:
                turn, fields = received
                if turn is Turn.START:
                    break
                continue
            if poll.poll(0):
                self._fail(errno.EPIPE, "the controller died before it sent start")
            if over():
                self._fail(errno.ETIMEDOUT, f"the controller did not send start within {limit} s")
        self._provided = callbacks_of(fields["cbflags"], None) | ALWAYS_PROVIDED
        return fields

    def attend(self, abort: Abort) -> None:
        """Tell `abort` if the controller disconnects. To be called before `abort` is entered."""
        self._abort = abort
        abort.watch(self._monitor_fd, self._monitor_ready)

    def provides(self, name: str) -> bool:
        return name in self._provided

    def call(self, name: str, **fields: int | str) -> int:
        if self._left:
            return 0
        self._send(name, fields)
        over = self._answer_over()
        self._wait_eagerly()
        while True:
            received = self._receive()
            if received is not None:
                turn, answer = received
                if turn is Turn.REPLY or turn is Turn.ASYNC_DONE:
                    value = self._seam_answer(name, int(answer["value"]))
                    if value is not None:
                        return value
            elif over():
                self._fail(errno.ETIMEDOUT, f"no answer to {name} within {self._answer_limit} s")

    def wait_for_ever(self) -> None:
        self._answer_limit = 0.0

    def tell(self, name: str, **fields: int | str) -> None:
        if not self._left:
            self._send(name, printable(fields))

    def leave(self) -> None:
        self.close()
        self._left = True

    def close(self) -> None:
        """Send what is still unsent, within a second, and close the socket."""
        if self._left:
            return
        lost = self._abort is not None and self._abort.lost
        with self._monitor_lock:
            self._monitored = False
            self._socket.disable_monitor()
            self._monitor.close(linger=0)
        self._socket.close(linger=0 if lost else _FAREWELL_MILLISECONDS)
        self._context.term()

    def _send(self, name: str, fields: dict[str, Any]) -> None:
        if self._over:
            raise self._over
        if self._abort is not None and self._abort.lost:
            self._fail(errno.EPIPE, self._abort.reason)
        data = msgpack_codec.encode(self._turns.next_seq, name, fields)
        self._turns.sending(name)
        self._seam_send(name, data)

    def _seam_send(self, name: str, data: bytes) -> None:
        """Hand the message `name` to the socket. A seam: `FaultyZmqChannel` injects faults here,
        and needs the name for that."""
        over = self._answer_over()
        while True:
            try:
                self._socket.send(data)
                return
            except zmq.Again:
                if over():
                    reason = f"the controller took nothing for {self._answer_limit} s"
                    self._fail(errno.ETIMEDOUT, reason)

    def _answer_over(self) -> Callable[[], bool]:
        """A function that says whether the answer's limit is used up. Calling it counts as
        activity. It raises ChannelError if the controller is gone."""
        over = _limit(self._answer_limit)

        def look() -> bool:
            if self._abort is not None:
                self._abort.alive()
                if self._abort.lost:
                    self._fail(errno.EPIPE, self._abort.reason)
            return over()

        return look

    def _wait_eagerly(self) -> None:
        until = time.monotonic() + _EAGER_SECONDS
        while not int(self._socket.get(_EVENTS)) & _POLLIN and time.monotonic() < until:
            # libzmq's own thread, which receives the answer, may have to run on this processor.
            os.sched_yield()

    def _receive(self) -> tuple[Turn, dict[str, Any]] | None:
        """The next message; None after a moment without one."""
        try:
            data = self._socket.recv()
        except zmq.Again:
            return None
        if self._socket.get(_RCVMORE):
            self._fail(errno.EPROTO, "the controller broke the protocol: a message of many parts")
        try:
            envelope = msgpack_codec.decode(data)
            turn = self._turns.received(envelope)
        except (DecodeError, TurnError) as bad:
            self._fail(errno.EPROTO, f"the controller broke the protocol: {bad}")
        if turn is Turn.REFUSED:
            self._fail(errno.ECONNREFUSED, f"the controller refused: {envelope.fields['reason']}")
        if turn is Turn.ABORT and self._abort is not None:
            self._abort.request(errno.ECANCELED, envelope.fields["reason"] or "the controller asks")
        return turn, envelope.fields

    def _seam_answer(self, name: str, value: int) -> int | None:
        """The value of an answer to `name` that has come; None if it has not. A seam, like
        `_seam_send`."""
        del name
        return value

    def _fail(self, errnoval: int, reason: str) -> NoReturn:
        self._over = ChannelError(errnoval, reason)
        if self._abort is not None:
            self._abort.request(errnoval, reason, lost=True)
        raise self._over

    def _monitor_ready(self) -> None:
        """Runs in the watcher's thread, the only user of the monitor socket until it is closed."""
        with self._monitor_lock:
            while self._monitored and self._monitor.poll(0, zmq.POLLIN):
                # Without zmq.utils.monitor, which loads asyncio: only DISCONNECTED can come.
                self._monitor.recv_multipart(zmq.NOBLOCK)
                if self._abort is not None:
                    self._abort.request(errno.EPIPE, "the controller hung up", lost=True)


def _limit(seconds: float) -> Callable[[], bool]:
    """A function that says whether `seconds` (0: no limit) are over, counting only time in which
    this process ran and the controller was not stopped."""
    if not seconds:
        return lambda: False
    patience = Patience(seconds, time.monotonic())
    return lambda: patience.look(time.monotonic(), counts=not controller_stands_still())
