"""A connection with faults in it: a relay for each direction between its two ends."""

from __future__ import annotations

import threading

from xen_save_helper.helper.faults.descriptors import end
from xen_save_helper.helper.faults.octets import BrokenError
from xen_save_helper.helper.faults.relay import AT_ONCE, Relay
from xen_save_helper.helper.faults.striker import Striker


class Connection:
    """Our descriptors of both ends, whose numbers stay in use: their owner closes them."""

    def __init__(self, *ends: int) -> None:
        self._ends = ends
        self.over = threading.Event()
        """It has ended in both directions."""
        self._lock = threading.Lock()

    def end(self, *ends: int, reset: bool = False) -> None:
        """End it at `ends`, or at all of them, so that the other side sees it."""
        with self._lock:
            if not ends:
                self.over.set()
            for fd in ends or self._ends:
                end(fd, reset=reset)


class Direction(Relay):
    """Passes bytes on until the source or the sink ends, or a fault cuts the connection."""

    def __init__(
        self, name: str, source: int, sink: int, striker: Striker, connection: Connection
    ) -> None:
        super().__init__(name, source, sink, striker)
        self._connection = connection

    def run(self) -> None:
        try:
            while data := self._read(AT_ONCE):
                self._take(self._octets.passes(self._seen(data)))
        except BrokenError as broken:
            if broken.shut:
                self._connection.end(reset=broken.both)
                return
            self._lost(broken)
        self._connection.end(self._sink)

    def _seen(self, data: bytes) -> bytes:
        """What is to pass in the place of what has come."""
        return data

    def _lost(self, broken: BrokenError) -> None:
        """One of the two ends has gone; the other direction will say so."""
