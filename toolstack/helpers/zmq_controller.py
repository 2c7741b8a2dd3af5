"""The controller's end of the channel to our helper, over ZeroMQ.

The socket is in a directory of its own that only its owner can enter, and both are removed once the
helper has connected. A process that connects is a stranger until its `hello` proves the secret;
strangers are refused and reported, and do not disturb the helper. The pipe that passes the secret
is also the helper's lifeline: its other end closes with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import Any, Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from xen_save_helper.ipc_schema.channel import msgpack_codec
from xen_save_helper.ipc_schema.channel.authentication import SECRET_SIZE
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    MAX_BODY,
    Answer,
    Message,
    Operation,
)
from xen_save_helper.ipc_schema.channel.msgpack_codec import Envelope
from xen_save_helper.ipc_schema.channel.turn_taking import ControllerEnd, TurnError
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.toolstack.aio.patience import patience
from xen_save_helper.toolstack.helpers.channel import ChannelListener, HelperProcessArguments
from xen_save_helper.toolstack.helpers.endpoint import Endpoint

_QUEUE: Final = 64
"""Messages of one peer that are queued until they are read."""
_AT_ONCE: Final = 64
"""Messages that are read before the event loop gets its turn."""
# As integers: pyzmq's enums cost more per message than the calls that they are for.
_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)
_HELLO: Final = CATALOGUE["hello"]
_STRANGERS: Final = 16
"""Strangers that are reported; further ones are refused in silence."""


class ZmqController:
    """The channel to one helper."""

    def __init__(
        self,
        operation: Operation,
        provided: frozenset[str],
        listener: ChannelListener,
    ) -> None:
        """Open the endpoint. Raises OSError."""
        self._listener = listener
        self._secret = os.urandom(SECRET_SIZE)
        self._turns = ControllerEnd(self._secret, operation, provided)
        self._peer = b""
        self._peer_fd = -1
        self._strangers = 0
        self._listening = False
        self._reading = False
        self._drained = asyncio.Event()
        with contextlib.ExitStack() as undo:
            self._secret_read, self._lifeline = os.pipe()
            undo.callback(self._close_pipe)
            os.write(self._lifeline, self._secret)
            self._endpoint = Endpoint()
            undo.callback(self._endpoint.remove)
            try:
                self._context = zmq.Context()
                undo.callback(self._context.destroy, linger=0)
                self._socket = self._open_socket()
            except zmq.ZMQError as error:
                raise OSError(error.errno, f"{self._endpoint.uri}: {error}") from error
            undo.pop_all()

    def _open_socket(self) -> zmq.Socket[bytes]:
        """Open and bind the socket. Raises zmq.ZMQError."""
        socket = self._context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, MAX_BODY),
            (zmq.RCVHWM, _QUEUE),
            (zmq.ROUTER_MANDATORY, 1),
            # libzmq's own limit must not end a connection: it takes a stopped process for dead.
            (zmq.HANDSHAKE_IVL, 0),
        ):
            socket.setsockopt(option, value)
        self._monitor = socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        socket.bind(self._endpoint.uri)
        return socket

    @property
    def process_arguments(self) -> HelperProcessArguments:
        return HelperProcessArguments(
            ("--connect", self._endpoint.uri, "--secret-fd", str(self._secret_read)),
            (self._secret_read,),
        )

    def listen(self) -> None:
        """Take messages, from the event loop: the process runs."""
        os.close(self._secret_read)
        self._secret_read = -1
        self._listening = True
        loop = asyncio.get_running_loop()
        loop.add_reader(int(self._socket.getsockopt(zmq.FD)), self._ready)
        loop.add_reader(int(self._monitor.getsockopt(zmq.FD)), self._monitor_ready)
        # The descriptors are edge-triggered, and silent until both have been read once.
        loop.call_soon(self._ready)
        loop.call_soon(self._monitor_ready)

    def stop_listening(self) -> None:
        if not self._listening:
            return
        self._listening = False
        self._drained.set()
        loop = asyncio.get_running_loop()
        loop.remove_reader(int(self._socket.getsockopt(zmq.FD)))
        loop.remove_reader(int(self._monitor.getsockopt(zmq.FD)))

    def close(self) -> None:
        self.stop_listening()
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)
        self._context.term()
        self._close_pipe()
        self._endpoint.remove()

    async def drain(self, limit: float) -> None:
        """After the process's end, wait until all that it sent has been read."""
        if self._peer_fd < 0 or not self._listening:
            return
        try:
            async with patience(limit):
                await self._drained.wait()
        except TimeoutError:
            pass  # another process has inherited its connection; what it sent is here
        self._ready()

    def _close_pipe(self) -> None:
        for fd in (self._secret_read, self._lifeline):
            if fd >= 0:
                os.close(fd)
        self._secret_read = self._lifeline = -1

    # What is said to the helper

    def start(self, fields: dict[str, Any]) -> None:
        """Answer the helper's hello. Raises OSError."""
        self._send("start", {**fields, "proof": self._turns.start_proof()})

    def answer(self, message: Message, value: int) -> None:
        """Answer the outstanding callback. Raises OSError."""
        name = "reply" if message.answer is Answer.SYNC else "async_callback_done"
        self._send(name, {"to": self._turns.waiting, "value": value})

    def abort(self, rc: int, reason: str) -> None:
        """Ask the helper to give up, if it can be asked yet. Raises OSError."""
        if self._peer:
            try:
                self._send("abort", {"rc": rc, "reason": reason[:1000]})
            except TurnError:
                pass  # it has not started yet, or has ended: SIGTERM will do

    def _send(self, name: str, fields: dict[str, Any]) -> None:
        data = msgpack_codec.encode(self._turns.next_seq, name, fields)
        self._turns.sending(name)
        try:
            self._seam_send(name, self._peer, data)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"the helper does not take {name}: {error}") from error
        # Sending may have consumed the edge that announces a message.
        if self._listening and not self._reading:
            asyncio.get_running_loop().call_soon(self._ready)

    def _seam_send(self, name: str, peer: bytes, data: bytes) -> None:
        """Send the encoded message `name`. Raises zmq.ZMQError. A seam for faults, which need
        the name."""
        del name
        self._socket.send(peer, _NOBLOCK_MORE)
        self._socket.send(data, _NOBLOCK)

    # What the helper says

    def _ready(self) -> None:
        self._reading = True
        try:
            for _ in range(_AT_ONCE):
                if not self._listening:
                    return
                if self._peer:
                    self._take(self._socket.recv(_NOBLOCK), self._rest())
                else:
                    self._take_hello(self._socket.recv_multipart(_NOBLOCK, copy=False))
        except zmq.Again:
            return
        finally:
            self._reading = False
        asyncio.get_running_loop().call_soon(self._ready)

    def _rest(self) -> list[bytes]:
        """The frames after the sender's identity. Not `recv_multipart`: see _NOBLOCK."""
        parts = [self._socket.recv(_NOBLOCK)]
        while self._socket.get(_RCVMORE):
            parts.append(self._socket.recv(_NOBLOCK))
        return parts

    def _take(self, identity: bytes, parts: list[bytes]) -> None:
        if identity != self._peer:
            self._refuse(identity, "this controller already has its helper")
            return
        try:
            envelope = _decode(parts)
            self._turns.received(envelope)
        except (DecodeError, TurnError) as bad:
            self._listener.violation(f"the helper broke the protocol: {bad}")
            return
        self._seam_heard(envelope.message, envelope.fields)

    def _seam_heard(self, message: Message, fields: dict[str, Any]) -> None:
        """Pass a message on to the listener. A seam, as `_seam_send` is."""
        if message is _HELLO:
            self._listener.hello()
        else:
            self._listener.message(message, fields)

    def _take_hello(self, frames: list[zmq.Frame]) -> None:
        identity, *parts = (bytes(frame.buffer) for frame in frames)
        try:
            envelope = _decode(parts)
            self._turns.received(envelope)
        except (DecodeError, TurnError) as bad:
            self._refuse(identity, str(bad))
            return
        self._peer = identity
        self._peer_fd = frames[-1].get(zmq.SRCFD)
        # Its connection stands, and there is no second one: nobody else shall get in.
        self._endpoint.remove()
        self._seam_heard(envelope.message, envelope.fields)

    def _refuse(self, identity: bytes, reason: str) -> None:
        """Refuse a stranger, outside the helper's sequence of messages."""
        data = msgpack_codec.encode(1, CATALOGUE["refused"].name, {"reason": reason[:1000]})
        try:
            self._seam_send("refused", identity, data)
        except zmq.ZMQError:
            pass  # it has disconnected, or does not listen
        self._strangers += 1
        if self._strangers <= _STRANGERS:
            self._listener.stranger(reason)

    def _monitor_ready(self) -> None:
        while self._listening and self._monitor.poll(0, zmq.POLLIN):
            event = recv_monitor_message(self._monitor, zmq.NOBLOCK)
            if self._peer_fd < 0 or event["value"] != self._peer_fd:
                continue
            self._drained.set()
            self._ready()
            if self._listening:
                self._listener.lost("the helper hung up, or sent too long a message")


def _decode(parts: list[bytes]) -> Envelope:
    if len(parts) != 1:
        raise DecodeError("message", 0, f"{len(parts)} parts, want one")
    return msgpack_codec.decode(parts[0])
