"""The trace: one JSON line for each callback, phase and failure, from every process.

A line is an object with `t` (CLOCK_MONOTONIC, seconds), `pid`, `process` (`helper`, `controller`,
`receiver`), `event`, and the event's own fields; `trace_events` is the catalogue of them. Lines are
written whole, so processes may share a file that is open for appending.
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
        self._sink = _Sink(write, ended)
        self._guest: str | None = None

    def about(self, guest: str) -> Trace:
        """The same trace for one guest's operation: each line also says `guest`, by which those of
        operations that go on at once in a process can be told apart."""
        other = Trace(self._process)
        other._sink = self._sink
        other._guest = guest
        return other

    def event(self, event: str, **fields: object) -> None:
        if self._sink.write is None:
            return
        pid = os.getpid()
        if pid != self._sink.clock_told_by:
            self._sink.clock_told_by = pid
            self.event("clock", **clock())
        import json

        line = {
            "t": round(time.monotonic(), 6),
            "pid": pid,
            "process": self._process,
            "event": event,
            **({} if self._guest is None else {"guest": self._guest}),
            **fields,
        }
        self._sink.put(json.dumps(line, default=str).encode() + b"\n")


class _Sink:
    """Where the lines of a trace go, whichever guest they are about."""

    def __init__(
        self,
        write: Callable[[bytes], object] | None,
        ended: Callable[[OSError], object] | None,
    ) -> None:
        self.write = write
        self._ended = ended
        self.clock_told_by = 0
        """The pid that has written `clock`: a process that was forked writes its own."""

    def put(self, line: bytes) -> None:
        if self.write is None:
            return
        try:
            self.write(line)
        except OSError as error:
            self.write = None
            if self._ended is not None:
                with contextlib.suppress(OSError):  # nobody is left to tell
                    self._ended(error)


def clock() -> dict[str, object]:
    """The fields of `clock`: which CLOCK_MONOTONIC `t` is of, and the time of day at which.

    `boot` is the running kernel's boot_id, and with `time_namespace`, the inode of the process's
    time namespace, names the clock: lines with the same pair can be compared. Each is None where
    /proc does not say it.
    """
    boot = time_namespace = None
    with contextlib.suppress(OSError):
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        time_namespace = os.stat("/proc/self/ns/time").st_ino
    return {"boot": boot, "time_namespace": time_namespace, "realtime": round(time.time(), 6)}
