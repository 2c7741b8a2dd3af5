"""A client of xenstored that never waits without an end (xen/include/public/io/xs_wire.h).

It speaks the wire protocol itself, over xenstored's socket or, where xenstored runs in a domain of
its own, the kernel's xenbus device. libxenstore has no limit on its waits.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import IntEnum

from xen_save_helper.helper.patience import poll_milliseconds
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final, Self
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

if TYPE_CHECKING:
    from typing import TypeVar

    T = TypeVar("T")

TIMEOUT: Final = 5.0
"""Seconds that xenstored may take to answer; it answers from memory."""

DEVICE: Final = "/dev/xen/xenbus"
MAX_PAYLOAD: Final = 4096
NO_TRANSACTION: Final = 0

_HEADER: Final = struct.Struct("=IIII")
"""struct xsd_sockmsg: type, req_id, tx_id, len."""


class _Type(IntEnum):
    """enum xsd_sockmsg_type, as far as it is used."""

    DIRECTORY = 1
    READ = 2
    GET_PERMS = 3
    WATCH = 4
    TRANSACTION_START = 6
    TRANSACTION_END = 7
    WRITE = 11
    SET_PERMS = 14
    WATCH_EVENT = 15
    ERROR = 16
    RESUME = 18


class Event(NamedTuple):
    """A watch has fired: `path` has changed, `token` is the watch's own."""

    path: str
    token: str


def socket_path() -> str:
    """xs_daemon_socket: where xenstored listens."""
    directory = os.environ.get("XENSTORED_RUNDIR", "/run/xenstored")
    return os.environ.get("XENSTORED_PATH", f"{directory}/socket")


def _open() -> int:
    """A non-blocking connection. Raises OSError that names what was tried."""
    path = socket_path()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.connect(path)
        return connection.detach()
    except OSError as refused:
        try:
            return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise OSError(
                refused.errno, f"no xenstored at {path}: {os.strerror(refused.errno or 0)}"
            ) from refused
    finally:
        connection.close()


class Xenstore:
    """One connection, for one thread. Paths are absolute, values are octets.

    Raises OSError with xenstored's errno, TimeoutError if it does not answer within `timeout`
    seconds; after that, and after EPROTO, the connection is of no use.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._request_id = 0
        self._input = bytearray()
        self._events: deque[Event] = deque()
        self._fd = _open()
        self._poll = select.poll()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends its watches and transactions, too."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def fileno(self) -> int:
        """Polls readable when a watch fires."""
        return self._fd

    def read(self, path: str, transaction: int = NO_TRANSACTION) -> bytes | None:
        """The value of a node, None if there is no such node."""
        try:
            return self._ask(_Type.READ, path.encode() + b"\0", transaction, path)
        except FileNotFoundError:
            return None

    def text(self, path: str, transaction: int = NO_TRANSACTION) -> str | None:
        """`read`, as text."""
        value = self.read(path, transaction)
        return None if value is None else value.decode(errors="replace")

    def directory(self, path: str, transaction: int = NO_TRANSACTION) -> list[str]:
        """The names of a node's children, none if there is no such node."""
        try:
            names = self._ask(_Type.DIRECTORY, path.encode() + b"\0", transaction, path)
        except FileNotFoundError:
            return []
        return [name.decode(errors="replace") for name in names.split(b"\0") if name]

    def write(self, path: str, value: bytes, transaction: int = NO_TRANSACTION) -> None:
        self._ask(_Type.WRITE, path.encode() + b"\0" + value, transaction, path)

    def permissions(self, path: str) -> list[str]:
        """Who may do what with a node, as in `n5` and `r0`: a letter (n for none, r, w, b for both)
        and a domid. The first one is the owner, who may do all, and what everybody else may.
        Raises FileNotFoundError where there is no such node."""
        answer = self._ask(_Type.GET_PERMS, path.encode() + b"\0", what=path)
        return [part.decode() for part in answer.split(b"\0") if part]

    def set_permissions(self, path: str, permissions: Sequence[str]) -> None:
        """Change them. Watches of the node fire, for whoever may read it before or after. Raises
        FileNotFoundError."""
        strings = [path, *permissions]
        payload = b"".join(string.encode() + b"\0" for string in strings)
        self._ask(_Type.SET_PERMS, payload, what=path)

    def watch(self, path: str, token: str) -> None:
        """Hear of changes of `path` and what is below it; it fires once at once."""
        self._ask(_Type.WATCH, path.encode() + b"\0" + token.encode() + b"\0", what=path)

    def resume_domain(self, domid: int) -> None:
        """xs_resume_domain: the domain's shutdown is no more to be told."""
        self._ask(_Type.RESUME, b"%d\0" % domid, what=f"resume of domain {domid}")

    def transact(self, work: Callable[[int], T]) -> T:
        """Do `work` in a transaction, again where another one came between; it must not have
        effects elsewhere. Raises TimeoutError if that goes on for ever."""
        patience = Patience(self._timeout, time.monotonic())
        while True:
            transaction = int(self._ask(_Type.TRANSACTION_START, b"\0").rstrip(b"\0"))
            try:
                result = work(transaction)
            except BaseException:
                self._ask(_Type.TRANSACTION_END, b"F\0", transaction)
                raise
            try:
                self._ask(_Type.TRANSACTION_END, b"T\0", transaction)
            except BlockingIOError:
                if not patience.look(time.monotonic()):
                    continue
                raise TimeoutError(errno.ETIMEDOUT, "a xenstore transaction never fits") from None
            return result

    def take_events(self) -> list[Event]:
        """The watches that have fired, without waiting. Raises OSError if xenstored is gone."""
        while self._receive():
            pass
        while (message := self._next_message()) is not None:
            kind, _, payload = message
            if kind != _Type.WATCH_EVENT:
                raise OSError(errno.EPROTO, f"xenstored answers (type {kind}) what nobody asked")
            self._keep_event(payload)
        events = list(self._events)
        self._events.clear()
        return events

    # The conversation

    def _ask(
        self, kind: _Type, payload: bytes, transaction: int = NO_TRANSACTION, what: str = ""
    ) -> bytes:
        if len(payload) > MAX_PAYLOAD:
            raise OSError(errno.E2BIG, f"xenstore: {len(payload)} octets for {what}")
        self._request_id = (self._request_id + 1) & 0xFFFFFFFF
        request = _HEADER.pack(kind, self._request_id, transaction, len(payload)) + payload
        patience = Patience(self._timeout, time.monotonic())
        self._send(request, patience, what)
        while True:
            message = self._next_message()
            if message is None:
                if not self._receive():
                    self._wait(select.POLLIN, patience, what)
                continue
            answered, request_id, answer = message
            if answered == _Type.WATCH_EVENT:
                self._keep_event(answer)
                continue
            if request_id != self._request_id or answered not in {kind, _Type.ERROR}:
                raise OSError(
                    errno.EPROTO,
                    f"xenstored answers request {request_id} with type {answered}, "
                    f"not {self._request_id} with {int(kind)}",
                )
            if answered == _Type.ERROR:
                raise _error(answer, kind, what)
            return answer

    def _send(self, data: bytes, patience: Patience, what: str) -> None:
        left = memoryview(data)
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, patience, what)

    def _receive(self) -> bool:
        """Take what has come; False if nothing has."""
        try:
            octets = os.read(self._fd, 1 << 16)
        except BlockingIOError:
            return False
        if not octets:
            raise ConnectionResetError(errno.ECONNRESET, "xenstored has closed the connection")
        self._input += octets
        return True

    def _wait(self, events: int, patience: Patience, what: str) -> None:
        self._poll.register(self._fd, events)
        while not patience.look(time.monotonic()):
            if self._poll.poll(poll_milliseconds(patience.wait)):
                return
        raise TimeoutError(
            errno.ETIMEDOUT, f"xenstored has not answered for {self._timeout:g} s ({what})"
        )

    def _next_message(self) -> tuple[int, int, bytes] | None:
        if len(self._input) < _HEADER.size:
            return None
        kind, request_id, _, length = _HEADER.unpack_from(self._input)
        if length > MAX_PAYLOAD:
            raise OSError(errno.EPROTO, f"xenstored sends a message of {length} octets")
        end = _HEADER.size + length
        if len(self._input) < end:
            return None
        payload = bytes(self._input[_HEADER.size : end])
        del self._input[:end]
        return kind, request_id, payload

    def _keep_event(self, payload: bytes) -> None:
        path, _, token = payload.rstrip(b"\0").partition(b"\0")
        self._events.append(Event(path.decode(errors="replace"), token.decode(errors="replace")))


def _error(answer: bytes, kind: _Type, what: str) -> OSError:
    name = answer.rstrip(b"\0").decode(errors="replace")
    number = getattr(errno, name, errno.EIO)
    return OSError(number, f"xenstore {kind.name} {what}: {name}")
