"""Octets in and out of a stream: whole, counted, paced, and never in a wait without an end.

Descriptors are inherited and their file status flags are shared with whoever gave them, so none
is made non-blocking. A wait on the main stream ends by the abort watcher, which puts a useless
descriptor in its place (see `helper.abort`); any other wait is a `poll` with a limit.
"""

from __future__ import annotations

import errno
import math
import os
import select
import time
from collections.abc import Callable, Sequence

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.patience import poll_milliseconds, poll_patiently
from xen_save_helper.ipc_schema.errors import StreamEndError

IOV_MAX = os.sysconf("SC_IOV_MAX")
"""Buffers that one writev or readv takes."""

Buffer = bytes | bytearray | memoryview

_PACE_SECONDS = 0.01
"""How much a pacer lets go at once, and how late it may be without losing its turn."""

_READ_CHUNK = 1 << 20


class Pacer:
    """Says when the next octets may go, so that not more than `bandwidth` a second do (0: all)."""

    def __init__(self, bandwidth: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bandwidth = bandwidth
        self._clock = clock
        self._due = clock()

    @property
    def quantum(self) -> int:
        """Octets to hand over at once; 0 for any number."""
        return max(4096, int(self._bandwidth * _PACE_SECONDS)) if self._bandwidth else 0

    def delay(self) -> float:
        """Seconds until the next octets are due; 0 where they are."""
        return max(0.0, self._due - self._clock()) if self._bandwidth else 0.0

    def charge(self, octets: int) -> None:
        """These went."""
        if self._bandwidth:
            earliest = self._clock() - _PACE_SECONDS
            self._due = max(self._due, earliest) + octets / self._bandwidth


class BusyPoll:
    """A `poll` that goes on looking for a moment before it lets the processor go.

    Waking up costs more than all else that a fault's way takes, and while faults come the next one
    is near. `expect` says that something is due: until `seconds` later, waits are busy ones, and
    give way to whoever else wants this processor: it may be the guest that was just woken.
    """

    def __init__(self, seconds: float) -> None:
        self._poll = select.poll()
        self._seconds = seconds
        self._busy_until = 0.0

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)

    def expect(self) -> None:
        self._busy_until = time.monotonic() + self._seconds

    @property
    def busy(self) -> float:
        """Seconds for which waits are busy ones from now on."""
        return max(0.0, self._busy_until - time.monotonic())

    def poll(self, seconds: float | None) -> list[tuple[int, int]]:
        """As `select.poll.poll`, for at most `seconds` (None: ever), busily first."""
        end = math.inf if seconds is None else time.monotonic() + seconds
        busy_until = min(end, self._busy_until)
        while not (ready := self._poll.poll(0)):
            now = time.monotonic()
            if now >= end:
                break
            if now >= busy_until:
                return self._poll.poll(None if seconds is None else poll_milliseconds(end - now))
            os.sched_yield()
        return ready


def wait_for(fd: int, events: int, abort: Abort, limit: float, what: str) -> None:
    """Wait until `fd` has one of `events` (or an error to tell).

    Raises what the abort says, or OSError(ETIMEDOUT) after `limit` seconds (0: never).
    """
    poll = select.poll()
    poll.register(fd, events)
    poll.register(abort.fileno(), select.POLLIN)
    ready = poll_patiently(poll, limit)
    abort.check()
    if not ready:
        raise OSError(errno.ETIMEDOUT, f"{what}: no sign of life for {limit} s")


def advance(buffers: Sequence[Buffer], octets: int) -> list[Buffer]:
    """What is left of `buffers` once their first `octets` are done with; nothing is copied."""
    for index, buffer in enumerate(buffers):
        if octets < len(buffer):
            rest = list(buffers[index:])
            if octets:
                rest[0] = memoryview(buffer)[octets:]
            return rest
        octets -= len(buffer)
    return []


def take(buffers: Sequence[Buffer], octets: int) -> list[Buffer]:
    """The first `octets` of `buffers`; nothing is copied."""
    taken: list[Buffer] = []
    for buffer in buffers:
        if octets <= len(buffer):
            taken.append(memoryview(buffer)[:octets])
            return taken
        taken.append(buffer)
        octets -= len(buffer)
    return taken


class StreamOutput:
    """The sending end. `octets` counts what went, all of it."""

    def __init__(self, fd: int, abort: Abort, bandwidth: int = 0, what: str = "stream") -> None:
        self.fd = fd
        self.octets = 0
        self.pacer = Pacer(bandwidth)
        self._abort = abort
        self._what = what

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers`, at the stream's pace.

        Raises the abort's error where there is an abort, else the write's (EPIPE, ENOSPC, ...)
        with the offset of the failure.
        """
        quantum = self.pacer.quantum
        if not quantum:
            self.write_now(buffers)
            return
        pending = list(buffers)
        while pending:
            if delay := self.pacer.delay():
                self._sleep(delay)
            self.write_now(take(pending, quantum))
            pending = advance(pending, quantum)

    def write_now(self, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers` whatever the pace; later writes make up for it."""
        pending: Sequence[Buffer] = buffers
        while pending:
            self._abort.check()
            try:
                written = os.writev(self.fd, pending[:IOV_MAX])
            except BlockingIOError:
                wait_for(self.fd, select.POLLOUT, self._abort, 0, self._what)
                continue
            except OSError as error:
                self._abort.check()
                raise OSError(
                    error.errno, f"{self._what}, write at offset {self.octets:#x}: {error.strerror}"
                ) from error
            self.octets += written
            self.pacer.charge(written)
            self._abort.progress()
            pending = advance(pending, written)

    def _sleep(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._abort.fileno(), select.POLLIN)
        poll.poll(poll_milliseconds(seconds))
        self._abort.check()
        self._abort.progress()


class StreamInput:
    """The receiving end. `offset` counts what came, so it is where the next octet stands."""

    def __init__(self, fd: int, abort: Abort, what: str = "stream") -> None:
        self.fd = fd
        self.offset = 0
        self._abort = abort
        self._what = what

    def read(self, size: int, what: str) -> bytes:
        """Exactly `size` octets of `what`. Raises StreamEndError where the stream ends before.

        Memory is taken as octets arrive, not on the word of `size`.
        """
        if size <= _READ_CHUNK:
            buffer = bytearray(size)
            self.readinto([memoryview(buffer)], what)
            return bytes(buffer)
        gathered = bytearray()
        while len(gathered) < size:
            gathered += self.read(min(size - len(gathered), _READ_CHUNK), what)
        return bytes(gathered)

    def skip(self, size: int, what: str) -> None:
        """Read and forget `size` octets."""
        scratch = memoryview(bytearray(min(size, _READ_CHUNK)))
        while size:
            part = scratch[: min(size, len(scratch))]
            self.readinto([part], what)
            size -= len(part)

    def readinto(self, views: Sequence[memoryview], what: str) -> None:
        """Fill `views`. Raises StreamEndError where the stream ends before, and OSError."""
        # An empty view would take a read that gives nothing, as the end of the stream does.
        pending: Sequence[Buffer] = [view for view in views if len(view)]
        while pending:
            taken = self.read_some(pending, what)
            if taken == 0:
                missing = sum(len(view) for view in pending)
                raise StreamEndError(
                    what, self.offset, f"the stream ends, {missing} octets are missing"
                )
            pending = advance(pending, taken)

    def read_some(self, views: Sequence[Buffer], what: str) -> int:
        """One read: the number of octets that came, 0 at the stream's end."""
        self._abort.check()
        while True:
            try:
                taken = os.readv(self.fd, views[:IOV_MAX])
            except BlockingIOError:
                wait_for(self.fd, select.POLLIN, self._abort, 0, self._what)
                continue
            except OSError as error:
                self._abort.check()
                raise OSError(
                    error.errno,
                    f"{self._what}, {what} at offset {self.offset:#x}: {error.strerror}",
                ) from error
            self.offset += taken
            self._abort.progress()
            return taken
