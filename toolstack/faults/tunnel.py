"""The tunnel of a postcopy over a link of its own with faults in it: a relay between the pager and
the page server.

The pager is led here by the migration's link (`link`), which puts the relay's port into the
page server's offer as it passes, as a router that translates addresses would.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from xen_save_helper.helper.faults.descriptors import reset_at_end
from xen_save_helper.helper.faults.injector import Firing, Injector
from xen_save_helper.helper.faults.outlet import BrokenError, Outlet
from xen_save_helper.helper.faults.striker import tell
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.ipc_schema.faults.points import Who
from xen_save_helper.ipc_schema.streams import postcopy_offer
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE
from xen_save_helper.ipc_schema.trace import Trace

_AT_ONCE: Final = 1 << 16
_LOOK_MS: Final = 100
_OFFER: Final = HEADER.pack(record_number(RecordType.POSTCOPY_OFFER, VERSION), 0)[:4]
_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR


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
        assert plan.seed is not None, "whoever reads a plan draws its seed"
        self._injector = Injector(plan.of(Who.TUNNEL), plan.seed)
        self._target = target
        self._trace = trace
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, name="tunnel", daemon=True)
        self._connections: list[_Connection] = []
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._over.is_set():
            if not poll.poll(_LOOK_MS):
                continue
            near = self._listener.accept()[0]
            try:
                far = socket.create_connection(("127.0.0.1", int(self._target.read_text())))
            except OSError:
                near.close()  # the page server has gone
                continue
            self._connections.append(_Connection(near, far, self._injector, self._trace))


class _Connection:
    """From the pager, `near`, to the page server, `far`."""

    def __init__(
        self, near: socket.socket, far: socket.socket, injector: Injector, trace: Trace
    ) -> None:
        self._ends = (near, far)
        self._lock = threading.Lock()
        self.over = threading.Event()
        for end in self._ends:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._ways = [
            _Way(name, source, sink, self, injector, trace)
            for name, source, sink in (("stream", far, near), ("back", near, far))
        ]
        for way in self._ways:
            way.start()

    def close(self) -> None:
        self.end()
        for way in self._ways:
            way.join()
        for one in self._ends:
            one.close()

    def end(self, *, reset: bool = False) -> None:
        """Both ends see it, in both directions."""
        with self._lock:
            if self.over.is_set():
                return
            self.over.set()
            for one in self._ends:
                if reset:
                    reset_at_end(one.fileno())
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)


class _Way(threading.Thread):
    """One direction of a connection."""

    def __init__(
        self,
        name: str,
        source: socket.socket,
        sink: socket.socket,
        connection: _Connection,
        injector: Injector,
        trace: Trace,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._source = source
        self._sink = sink
        self._connection = connection
        self._injector = injector
        self._trace = trace
        self._outlet = Outlet(self._strike, self._write, writing=True)
        for at in injector.places(name):
            self._outlet.place(at, name, at)

    def run(self) -> None:
        """Pass bytes on until one end has gone, or a fault ends the connection."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        reset = False
        try:
            while not self._connection.over.is_set():
                if not poll.poll(_LOOK_MS):
                    continue
                data = self._source.recv(_AT_ONCE)
                if not data:
                    break
                self._outlet.pass_on(data)
        except BrokenError as broken:
            reset = broken.both
        except OSError:
            pass
        self._connection.end(reset=reset)

    def _strike(self, point: str, at: int | None = None) -> Iterator[Firing]:
        for firing in self._injector.passes(point, at):
            tell(self._trace, firing)
            if firing.fault.action.kind is actions.STALL:
                self._stall(firing.fault.action.value)
            else:
                yield firing

    def _stall(self, seconds: object) -> None:
        """Until an end has gone, if it is for ever."""
        poll = select.poll()
        for end in (self._source, self._sink):
            poll.register(end, select.POLLRDHUP)
        if seconds is not None:
            self._connection.over.wait(float(str(seconds)))
            return
        while not self._connection.over.is_set():
            if any(events & _GONE for _fd, events in poll.poll(_LOOK_MS)):
                raise ConnectionError
        raise ConnectionError

    def _write(self, data: bytes) -> None:
        self._sink.sendall(data)


@contextmanager
def trace_to(file: Path) -> Iterator[Trace]:
    """Lines of the process `link` in a file that others write, too."""
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        yield Trace("link", lambda line: os.write(fd, line))
    finally:
        os.close(fd)
