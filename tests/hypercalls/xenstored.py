"""A xenstored for the stand-in's machine: nodes with permissions, and watches (xs_wire.h).

Whoever connects to its socket is dom0. Guests are objects of the test's own process, by the same
rules: do_read, do_set_perms and fire_watches of Xen's xenstored_core.c and xenstored_watch.c.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_HEADER: Final = struct.Struct("=IIII")
_READ, _GET_PERMS, _WATCH, _WRITE, _SET_PERMS, _WATCH_EVENT, _ERROR = 2, 3, 4, 11, 14, 15, 16
_OK: Final = b"OK\0"
_DOM0: Final = 0


@dataclass
class Node:
    value: bytes
    permissions: list[str]

    def lets(self, domid: int, what: str) -> bool:
        """perm_for_conn: whether this domain may do `what`, r or w."""
        owner, *others = self.permissions
        if domid in (_DOM0, int(owner[1:])):
            return True
        letter = next((entry[0] for entry in others if int(entry[1:]) == domid), owner[0])
        return letter in {what, "b"}


@dataclass
class _Watch:
    path: str
    fire: Callable[[str], None]


class Guest:
    """A domain's own connection; its watch on what it is asked for."""

    def __init__(self, store: Xenstored, domid: int) -> None:
        self._store = store
        self._domid = domid
        self.path = f"/local/domain/{domid}/control/shutdown"

    def watch(self, fire: Callable[[], None]) -> None:
        self._store.watch(self.path, lambda _path: fire())

    def read(self) -> str:
        """Raises PermissionError, as Xen's says EACCES."""
        return self._store.read(self.path, self._domid).decode()

    def answer(self) -> None:
        """Acknowledge what it is asked for."""
        self._store.write(self.path, b"", self._domid)


class Xenstored:
    """Listens on `path` until `close`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._nodes: dict[str, Node] = {}
        self._watches: list[_Watch] = []
        self._lock = threading.RLock()
        self._connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def make_domain(self, domid: int) -> Guest:
        """As libxl does: the guest owns the node."""
        guest = Guest(self, domid)
        self._nodes[guest.path] = Node(b"", [f"n{domid}"])
        return guest

    def read(self, path: str, domid: int = _DOM0) -> bytes:
        with self._lock:
            return self._node(path, domid, "r").value

    def write(self, path: str, value: bytes, domid: int = _DOM0) -> None:
        with self._lock:
            node = self._node(path, domid, "w")
            node.value = value
            self._fire(path)

    def permissions(self, path: str) -> list[str]:
        with self._lock:
            return self._node(path, _DOM0, "r").permissions

    def set_permissions(self, path: str, permissions: list[str]) -> None:
        with self._lock:
            node = self._node(path, _DOM0, "w")
            node.permissions = permissions
            self._fire(path)

    def watch(self, path: str, fire: Callable[[str], None]) -> None:
        """It fires once at once."""
        with self._lock:
            self._watches.append(_Watch(path, fire))
            fire(path)

    def forget(self, path: str) -> None:
        """The domain is gone."""
        with self._lock:
            del self._nodes[path]

    def close(self) -> None:
        """Hang up on everybody."""
        with self._lock:
            for one in (self._listener, *self._connections):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _node(self, path: str, domid: int, what: str) -> Node:
        node = self._nodes.get(path)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, path)
        if not node.lets(domid, what):
            raise PermissionError(errno.EACCES, path)
        return node

    def _fire(self, path: str) -> None:
        """A guest hears of a change to what it may not read, too: it may read `control`, the parent
        (watch_permitted)."""
        for watch in self._watches:
            if watch.path == path:
                watch.fire(path)

    # dom0's programs

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            with self._lock:
                self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join(10)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as reader, contextlib.suppress(OSError):
            while len(header := reader.read(_HEADER.size)) == _HEADER.size:
                kind, request, transaction, length = _HEADER.unpack(header)
                payload = reader.read(length)

                def say(kind: int, answer: bytes, request: int = 0, tx: int = 0) -> None:
                    with contextlib.suppress(OSError):
                        connection.sendall(_HEADER.pack(kind, request, tx, len(answer)) + answer)

                with self._lock:
                    try:
                        answer = self._answer(kind, payload, say)
                    except OSError as error:
                        name = errno.errorcode[error.errno or errno.EIO].encode()
                        say(_ERROR, name + b"\0", request, transaction)
                        continue
                    say(kind, answer, request, transaction)

    def _answer(self, kind: int, payload: bytes, say: Callable[[int, bytes], None]) -> bytes:
        first, _, rest = payload.partition(b"\0")
        path = first.decode()
        if kind == _READ:
            return self.read(path)
        if kind == _WRITE:
            self.write(path, rest)
        elif kind == _GET_PERMS:
            return b"".join(entry.encode() + b"\0" for entry in self.permissions(path))
        elif kind == _SET_PERMS:
            self.set_permissions(path, rest.rstrip(b"\0").decode().split("\0"))
        elif kind == _WATCH:
            self.watch(path, lambda now: say(_WATCH_EVENT, now.encode() + b"\0" + rest))
        else:
            raise OSError(errno.ENOSYS, "")
        return _OK
