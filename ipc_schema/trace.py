"""The trace: one JSON line for each callback, phase and failure, from every process.

A line is an object with `t` (CLOCK_MONOTONIC, seconds), `pid`, `process` (`helper`, `controller`,
`receiver`), `event`, and the event's own fields; `trace_events` is the catalogue of them. Those of
an evacuation's controller have a `guest_name` as well. Lines are written whole, so processes may
share a file that is open for appending.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable


class Trace:
    """Turns events into lines and hands each to `write`. Without `write` it does nothing, and does
    not load json, which would slow down the drop-in's start.

    A trace must not make a save fail: if `write` raises OSError (the disk is full), the trace ends
    there, and `ended` is called with the error, once.
    """

    def __init__(
        self,
        process: str,
        write: Callable[[bytes], object] | None = None,
        ended: Callable[[OSError], object] | None = None,
    ) -> None:
        self._process = process
        self._write = write
        self._ended = ended
        self._common: dict[str, object] = {}

    def about(self, guest: str) -> Trace:
        """The same trace, with a `guest_name` in each line: for work on several guests."""
        about = Trace(self._process, self._write and self._put)
        about._common = {"guest_name": guest}
        return about

    def event(self, event: str, **fields: object) -> None:
        if self._write is None:
            return
        import json

        line = {
            "t": round(time.monotonic(), 6),
            "pid": os.getpid(),
            "process": self._process,
            "event": event,
            **self._common,
            **fields,
        }
        self._put(json.dumps(line, default=str).encode() + b"\n")

    def _put(self, line: bytes) -> None:
        if self._write is None:
            return
        try:
            self._write(line)
        except OSError as error:
            self._write = None
            if self._ended is not None:
                with contextlib.suppress(OSError):  # nobody is left to tell
                    self._ended(error)
