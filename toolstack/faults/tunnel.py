"""The tunnel of a postcopy over a link of its own with faults in it: a relay between the pager and
the page server.

The pager is led here by the migration's link (`link`), which puts the relay's port into the
page server's offer as it passes, as a router that translates addresses would.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, Self

from xen_save_helper.helper.faults.descriptors import shut
from xen_save_helper.helper.faults.octets import FOR_EVER, BrokenError
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.ipc_schema.faults.points import Who
from xen_save_helper.ipc_schema.streams import postcopy_offer
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.faults.connection import Connection, Direction

_LOOK_MS: Final = 100
_OFFER: Final = HEADER.pack(record_number(RecordType.POSTCOPY_OFFER, VERSION), 0)[:4]


class Led:
    """What passes a link, with `port` in the place of the page server's own in its offer, which the
    file `target` gets."""

    def __init__(self, port: int, target: Path) -> None:
        self._port = port
        self._target = target
        self._held = b""
        """The beginning of an offer whose rest is still to come."""
        self._done = False

    def __call__(self, data: bytes) -> bytes:
        """The bytes that are to pass now. Raises OSError."""
        if self._done:
            return data
        data, self._held = self._held + data, b""
        place = -1
        while (place := data.find(_OFFER, place + 1)) >= 0:
            body = place + HEADER_SIZE
            length = HEADER.unpack_from(data, place)[1] if body <= len(data) else 0
            if length > postcopy_offer.MOST:
                continue  # other bytes that look so
            if body + length > len(data):
                self._held = data[place:]
                return data[:place]
            try:
                offer = postcopy_offer.decode(data[body : body + length], body)
            except DecodeError:
                continue
            fresh = self._target.with_name(f".{self._target.name}")
            fresh.write_text(f"{offer.port}")
            fresh.rename(self._target)
            self._done = True
            led = postcopy_offer.encode(offer._replace(port=self._port))
            return data[:body] + led + data[body + length :]
        return data


class TunnelRelay:
    """Listens on `port`, and carries each connection to the port in the file `target`, through the
    faults of the `plan`, until it is closed. Raises OSError."""

    def __init__(self, plan: Plan, target: Path, trace: Trace) -> None:
        self._striker = Striker(plan, Who.TUNNEL, trace=trace, prefix=None)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="tunnel", daemon=True)
        self._over = ExitStack()
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shut(self._listener.fileno())
        self._thread.join()
        self._listener.close()
        self._over.close()

    def _accept(self) -> None:
        while True:
            try:
                near = self._listener.accept()[0]
            except OSError:
                return  # the listener is shut
            try:
                far = socket.create_connection(("127.0.0.1", int(self._target.read_text())))
            except OSError:
                near.close()  # the page server has gone
                continue
            self._carry(near, far)

    def _carry(self, pager: socket.socket, server: socket.socket) -> None:
        """Start a connection, which ends when we do at the latest."""
        to_pager, to_server = pager.fileno(), server.fileno()
        connection = Connection(to_pager, to_server)
        ways = [
            _Direction("stream", to_server, to_pager, self._striker, connection),
            _Direction("back", to_pager, to_server, self._striker, connection),
        ]
        for end in (pager, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._over.callback(end.close)
        for way in ways:
            self._over.callback(way.join)
            way.start()
        self._over.callback(connection.end)


class _Direction(Direction):
    """One direction of a connection. One that stands still for ever does so until an end has
    gone."""

    def _rest(self, seconds: float) -> None:
        if seconds < FOR_EVER:
            self._connection.over.wait(seconds)
            return
        poll = select.poll()
        for fd in (self._source, self._sink):
            poll.register(fd, select.POLLRDHUP)
        while not (self._connection.over.is_set() or poll.poll(_LOOK_MS)):
            pass
        raise BrokenError(errno.ECONNRESET)


@contextmanager
def trace_to(file: Path) -> Iterator[Trace]:
    """Lines of the process `link` in a file that others write, too."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        yield Trace("link", lambda line: os.write(fd, line))
    finally:
        os.close(fd)
