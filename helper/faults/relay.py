"""A thread that passes a stream on, through its faults."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections.abc import Iterable
from typing import Final

from xen_save_helper.helper.faults.octets import BrokenError, Octets, Step
from xen_save_helper.helper.faults.striker import Striker

AT_ONCE: Final = 1 << 16
"""Bytes that are read at once."""


class Relay(threading.Thread):
    """From the descriptor `source` to `sink`, which stay the caller's. `point` is the name of the
    point that is passed at each offset; `writing`: who writes the stream sees its faults, not who
    reads it."""

    def __init__(
        self, point: str, source: int, sink: int, striker: Striker, *, writing: bool = True
    ) -> None:
        super().__init__(name=f"relay of {point}", daemon=True)
        self.point = point
        self._source = source
        self._sink = sink
        self._readable = select.poll()
        self._readable.register(source, select.POLLIN)
        self._octets = Octets(striker, writing=writing)
        for at in striker.places(point):
            self._octets.place(at, point, at)

    def _take(self, steps: Iterable[Step]) -> None:
        """Raises BrokenError."""
        for piece, pause in steps:
            self._write(piece)
            if pause:
                self._rest(pause)

    def _read(self, size: int) -> bytes:
        """Up to `size` bytes; none at the end. Raises BrokenError."""
        while True:
            self._readable.poll()
            try:
                return os.read(self._source, size)
            except BlockingIOError:
                continue
            except OSError as bad:
                raise BrokenError(bad.errno or errno.EIO) from bad

    def _write(self, data: bytes) -> None:
        """Raises BrokenError."""
        while data:
            try:
                data = data[os.write(self._sink, data) :]
            except BlockingIOError:
                poll = select.poll()
                poll.register(self._sink, select.POLLOUT)
                poll.poll()
            except OSError as bad:
                raise BrokenError(bad.errno or errno.EIO) from bad

    def _rest(self, seconds: float) -> None:
        time.sleep(seconds)
