"""A socket on which a process answers what is asked of it, in a thread of its own
(`ipc_schema.control`).

Whoever asks cannot disturb the work: a client that sends no request, or does not read, is closed.
"""

from __future__ import annotations

import os
import selectors
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from xen_save_helper.ipc_schema.causes import words_of
from xen_save_helper.ipc_schema.control import (
    IDENTITY,
    LONGEST_LINE,
    SOCKET,
    Ask,
    Identity,
    decode_line,
    encode_line,
)

Answer = Callable[[Ask, Mapping[str, Any]], Mapping[str, Any]]
"""The response to a request. Raises OSError or ValueError for one that cannot be met."""

_MOST_CLIENTS: Final = 128
_TICK: Final = 1.0
_LAST_WORD_SECONDS: Final = 1.0
_CREDENTIALS: Final = struct.Struct("3i")
"""struct ucred: pid, uid, gid."""


class ControlSocket:
    """Of the process that makes it. `answer`, and each second `tick`, are called in its thread.

    Raises OSError if the directory cannot be had, or belongs to others too.
    """

    def __init__(
        self, directory: str, identity: Identity, answer: Answer, tick: Callable[[], None]
    ) -> None:
        self._identity = identity
        self._answer = answer
        self._status: Mapping[str, Any] = {}
        self._tick = tick
        self._directory = _own_directory(directory)
        self._stop, self._stopped = socket.socketpair()
        self._ended = ""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listen()
            # Last: whoever finds it can ask.
            self._write_identity()
        except BaseException:
            self._remove(SOCKET)
            self._remove(IDENTITY)
            self._release()
            raise
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self._thread.start()

    def close(self, ended: str = "") -> None:
        """Tell those who wait that it is over: `ended` says why its work is not done."""
        self._ended = ended
        with suppress(OSError, ValueError):
            self._status = self._answer(Ask.STATUS, {})
        # First, for those who are told, or can no longer connect, and look for it.
        if ended:
            self._identity = self._identity._replace(ended=ended)
            with suppress(OSError):
                self._write_identity()
        else:
            self._remove(IDENTITY)
        self._stop.close()
        self._thread.join()
        self._remove(SOCKET)
        self._release()

    def _release(self) -> None:
        for sock in (self._listener, self._stop, self._stopped):
            sock.close()
        os.close(self._directory)

    def _listen(self) -> None:
        # Through the directory's descriptor: a socket's whole path may be too long.
        self._listener.bind(f"/proc/self/fd/{self._directory}/{self._identity.name}{SOCKET}")
        self._listener.listen(_MOST_CLIENTS)
        self._listener.setblocking(False)

    def _remove(self, suffix: str) -> None:
        with suppress(OSError):
            os.unlink(self._identity.name + suffix, dir_fd=self._directory)

    def _write_identity(self) -> None:
        name = self._identity.name + IDENTITY
        fresh = f".{name}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(fresh, flags, 0o600, dir_fd=self._directory), "wb") as file:
            file.write(encode_line(self._identity._asdict()))
        os.rename(fresh, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    # In the thread.

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._stopped, selectors.EVENT_READ)
            clients: dict[int, _Client] = {}
            due = time.monotonic() + _TICK
            over = False
            while not over:
                for key, events in selector.select(max(0.0, due - time.monotonic())):
                    if key.fileobj is self._stopped:
                        over = True
                    elif key.fileobj is self._listener:
                        self._accept(selector, clients)
                    else:
                        self._serve(selector, clients, clients[key.fd], events)
                if time.monotonic() >= due:
                    self._tick()
                    due = time.monotonic() + _TICK
            self._say_last(clients)

    def _accept(self, selector: selectors.BaseSelector, clients: dict[int, _Client]) -> None:
        with suppress(OSError):
            sock = self._listener.accept()[0]
            sock.setblocking(False)
            if len(clients) >= _MOST_CLIENTS or not _is_ours(sock):
                sock.close()
                return
            clients[sock.fileno()] = _Client(sock)
            selector.register(sock, selectors.EVENT_READ)

    def _serve(
        self,
        selector: selectors.BaseSelector,
        clients: dict[int, _Client],
        client: _Client,
        events: int,
    ) -> None:
        try:
            if events & selectors.EVENT_READ:
                for line in client.take_lines():
                    self._respond(client, line)
            client.send()
        except (OSError, ValueError, EOFError):
            selector.unregister(client.sock)
            del clients[client.sock.fileno()]
            client.sock.close()
            return
        wants = selectors.EVENT_WRITE if client.outbox else 0
        selector.modify(client.sock, selectors.EVENT_READ | wants)

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

    def _say_last(self, clients: dict[int, _Client]) -> None:
        for client in clients.values():
            if client.waits:
                client.outbox += encode_line({"ended": self._ended, "status": self._status})
            client.sock.settimeout(_LAST_WORD_SECONDS)
            with suppress(OSError):
                client.sock.sendall(client.outbox)
            client.sock.close()


class _Client:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.waits = False

    def take_lines(self) -> list[bytes]:
        """Whole ones that have come. Raises EOFError at its end, ValueError for too long a line."""
        data = self.sock.recv(LONGEST_LINE)
        if not data:
            raise EOFError
        self.inbox += data
        *lines, rest = bytes(self.inbox).split(b"\n")
        self.inbox[:] = rest
        if len(rest) > LONGEST_LINE:
            raise ValueError("it sends no requests")
        return lines

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
