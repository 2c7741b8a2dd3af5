"""A socket on which a process answers what is asked of it (`ipc_schema.control`): from its event
loop (`ControlServer`), or in a thread of its own (`ControlSocket`).

Whoever asks cannot disturb the work: a client that sends no request, or does not read, is closed,
and all of them together get a tenth of the time. Nor do they keep out others: if there are too
many, the one that has said nothing for longest is closed, but for those that wait for the end.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from xen_save_helper.ipc_schema.causes import words_of
from xen_save_helper.ipc_schema.control import (
    IDENTITY,
    LONGEST_LINE,
    SOCKET,
    Ask,
    Identity,
    decode_line,
    encode_line,
    left_by_the_dead,
)
from xen_save_helper.ipc_schema.hints import Any, Final

Answer = Callable[[Ask, Mapping[str, Any]], Mapping[str, Any]]
"""The response to a request. Raises OSError or ValueError for one that cannot be met."""

_MOST_CLIENTS: Final = 128
_TOO_MANY: Final = encode_line({"error": f"{_MOST_CLIENTS} others wait for its end already"})
_TICK: Final = 1.0
_LAST_WORD_SECONDS: Final = 1.0
_REST: Final = 9
"""For how many times as long as it has served it does nothing."""
_MOST_ASKED: Final = 4 * LONGEST_LINE
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class ControlServer:
    """Its descriptor polls readable when there is something to `serve`. Nothing waits, except for
    the last words in `close`.

    Raises OSError if the directory cannot be had, or belongs to others too.
    """

    def __init__(self, directory: str, identity: Identity, answer: Answer) -> None:
        self._identity = identity
        self._answer = answer
        self._directory = _own_directory(directory)
        self._selector = selectors.EpollSelector()
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._remove_those_of_the_dead()
            self._listen()
            # Last: whoever finds it can ask.
            self._write_identity()
        except BaseException:
            self._remove(SOCKET)
            self._remove(IDENTITY)
            self._release()
            raise
        self._selector.register(self._listener, selectors.EVENT_READ)

    def fileno(self) -> int:
        return self._selector.fileno()

    def serve(self) -> float:
        """Answer one request of each client. Returns for how many seconds to leave it alone."""
        began = time.thread_time()
        for key, events in self._selector.select(0):
            if key.fileobj is self._listener:
                self._accept()
                continue
            client = self._clients.get(key.fd)
            # A client that was just accepted may have the number of one that made room for it.
            if client is not None and client.sock is key.fileobj:
                self._serve(client, events)
        return _REST * (time.thread_time() - began)

    def close(self, ended: str = "", *, leaves: Callable[[], bool] = lambda: True) -> None:
        """Tell those who wait that it is over: `ended` says why its work is not done; the identity
        stays then, if it `leaves` something to look for."""
        # First, for those who are told, or can no longer connect, and look for it.
        if ended and leaves():
            self._identity = self._identity._replace(ended=ended)
            with suppress(OSError):
                self._write_identity()
        # Asked again: who has destroyed that meanwhile has seen a process that still worked.
        if not (ended and leaves()):
            self._remove(IDENTITY)
        self._say_last(ended)
        self._remove(SOCKET)
        self._release()

    def _release(self) -> None:
        self._selector.close()
        self._listener.close()
        os.close(self._directory)

    def _listen(self) -> None:
        # Through the directory's descriptor: a socket's whole path may be too long.
        self._listener.bind(f"/proc/self/fd/{self._directory}/{self._identity.name}{SOCKET}")
        self._listener.listen(_MOST_CLIENTS)
        self._listener.setblocking(False)

    def _remove(self, suffix: str) -> None:
        with suppress(OSError):
            os.unlink(self._identity.name + suffix, dir_fd=self._directory)

    def _remove_those_of_the_dead(self) -> None:
        for file in left_by_the_dead(os.listdir(f"/proc/self/fd/{self._directory}")):
            with suppress(OSError):  # another one has removed it
                os.unlink(file, dir_fd=self._directory)

    def _write_identity(self) -> None:
        name = self._identity.name + IDENTITY
        fresh = f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(fresh, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.write(encode_line(self._identity._asdict()))
        os.rename(fresh, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _accept(self) -> None:
        """All that wait: their places in the queue are few."""
        with suppress(OSError):
            for _ in range(_MOST_CLIENTS):
                sock = self._listener.accept()[0]
                sock.setblocking(False)
                if not _is_ours(sock):
                    sock.close()
                    continue
                if len(self._clients) >= _MOST_CLIENTS and not self._make_room():
                    with suppress(OSError):
                        sock.send(_TOO_MANY)
                    sock.close()
                    continue
                self._clients[sock.fileno()] = _Client(sock)
                self._selector.register(sock, selectors.EVENT_READ)

    def _make_room(self) -> bool:
        """Close the client that has said nothing for longest; False if all wait for the end."""
        idle = next((one for one in self._clients.values() if not one.waits), None)
        if idle is not None:
            self._close(idle)
        return idle is not None

    def _close(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _serve(self, client: _Client, events: int) -> None:
        # The last in the order of who has said something.
        self._clients[client.sock.fileno()] = self._clients.pop(client.sock.fileno())
        try:
            if events & selectors.EVENT_READ:
                client.receive()
            if line := client.take_line():
                self._respond(client, line)
            client.send()
            wants = client.wants
        except (OSError, ValueError):
            wants = 0
        if wants:
            self._selector.modify(client.sock, wants)
        else:
            self._close(client)

    def _respond(self, client: _Client, line: bytes) -> None:
        try:
            request = decode_line(line)
            ask = Ask(str(request.get("ask")))
            if ask is Ask.WAIT:
                client.waits = True
                return
            response = self._answer(ask, request)
        except (OSError, ValueError) as error:
            response = {"error": words_of(error)}
        client.outbox += encode_line(response)

    def _say_last(self, ended: str) -> None:
        status: Mapping[str, Any] = {}
        with suppress(OSError, ValueError):
            status = self._answer(Ask.STATUS, {})
        end = time.monotonic() + _LAST_WORD_SECONDS
        for client in self._clients.values():
            if client.waits:
                client.outbox += encode_line({"ended": ended, "status": status})
            client.sock.settimeout(max(0.001, end - time.monotonic()))
            with suppress(OSError):
                client.sock.sendall(client.outbox)
            client.sock.close()


class ControlSocket:
    """A `ControlServer` in a thread: `answer`, and each second `tick`, are called there."""

    def __init__(
        self, directory: str, identity: Identity, answer: Answer, tick: Callable[[], object]
    ) -> None:
        self._tick = tick
        self._stop, self._stopped = socket.socketpair()
        try:
            self._server = ControlServer(directory, identity, answer)
        except BaseException:
            self._stop.close()
            self._stopped.close()
            raise
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self, ended: str = "", *, leaves: Callable[[], bool] = lambda: True) -> None:
        """See `ControlServer.close`."""
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self._server.close(ended, leaves=leaves)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._server, select.POLLIN)
        poll.register(self._stopped, select.POLLIN)
        due = time.monotonic() + _TICK
        while True:
            ready = poll.poll(max(0.0, due - time.monotonic()) * 1000)
            if any(fd == self._stopped.fileno() for fd, _events in ready):
                return
            rest = self._server.serve()
            if time.monotonic() >= due:
                self._tick()
                due = time.monotonic() + _TICK
            if select.select([self._stopped], [], [], rest)[0]:
                return


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.waits = False
        self.ended = False
        """It sends nothing any more."""

    def receive(self) -> None:
        """Raises OSError, ValueError if it sends no requests, or does not wait for answers."""
        data = self.sock.recv(LONGEST_LINE)
        self.ended = not data
        self.inbox += data
        if len(self.inbox) > _MOST_ASKED or len(self.inbox) > LONGEST_LINE > self._line_end():
            raise ValueError("too much")

    def take_line(self) -> bytes:
        """The next whole one; empty if there is none, or while it has not read the last answer."""
        end = self._line_end()
        if self.outbox or end < 0:
            return b""
        line = bytes(self.inbox[: end + 1])
        del self.inbox[: end + 1]
        return line

    def _line_end(self) -> int:
        return self.inbox.find(b"\n")

    @property
    def wants(self) -> int:
        """The events to wait for; 0 if it has gone, and has been told all."""
        read = 0 if self.ended else selectors.EVENT_READ
        more = self.outbox or self._line_end() >= 0
        return read | (selectors.EVENT_WRITE if more else 0)

    def send(self) -> None:
        """As much as it takes. Raises OSError, ValueError if it reads nothing."""
        if not self.outbox:
            return
        with suppress(BlockingIOError):
            del self.outbox[: self.sock.send(self.outbox)]
        if len(self.outbox) > LONGEST_LINE:
            raise ValueError("it does not read")


def _own_directory(path: str) -> int:
    """A descriptor of it; it is made if need be. Raises OSError if others may write to it."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    status = os.fstat(fd)
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o022:
        os.close(fd)
        raise PermissionError(f"{path}: it must be ours, and no others may write to it")
    return fd


def _is_ours(sock: socket.socket) -> bool:
    packed = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _pid, uid, _gid = _CREDENTIALS.unpack(packed)
    return uid in (0, os.geteuid())
