"""Reading and writing a stream: completely, counted, paced, and never waiting without an end.

Descriptors are inherited and share their file status flags with the parent's, so none is made
non-blocking. The abort watcher ends a wait on the main stream by putting an unusable descriptor in
its place (see `helper.abort`); any other wait is a `poll` with a limit.
"""

from __future__ import annotations

import errno
import math
import os
import select
import stat
import time
from _socket import AF_UNIX, MSG_WAITALL, SOCK_STREAM, socket  # `socket` takes 5 ms to import
from collections.abc import Callable, Sequence

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine import bounce
from xen_save_helper.helper.patience import poll_milliseconds, poll_patiently
from xen_save_helper.ipc_schema.board import AS_ASKED, Board, Word
from xen_save_helper.ipc_schema.errors import StreamEndError

IOV_MAX = os.sysconf("SC_IOV_MAX")
"""The most buffers that one writev or readv takes."""

Buffer = bytes | bytearray | memoryview

_PACE_SECONDS = 0.01
"""How many seconds' worth of bytes may go at once, and how late a write may be without losing its
turn."""

_PAUSED_BANDWIDTH = 4096
"""Bytes a second that a stream carries while sending is paused, as a sign of life: neither the
other side nor whoever watches this one may take it for a stream that stands still."""

_OBEY_SECONDS = 0.1
"""How soon a wait for its turn follows a change of the bandwidth."""

_READ_CHUNK = 1 << 20
_BYTES = int(Word.BYTES)
_LARGE = 1 << 16
"""Bytes for which one read of a socket waits in the kernel, until all have come."""

_SLICE_SECONDS = 0.0005
"""A yield that takes longer has lost the processor to a program that computes."""
_SLEPT_AT_LEAST = 8
_SLEPT_AT_MOST = 4096
_SPUN_IN_PEACE = 64
"""After so many busy waits, a slice that is lost is taken for an accident."""


class Pacer:
    """Says when the next bytes may go, so that at most `bandwidth` a second do (0: no limit)."""

    def __init__(self, bandwidth: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._bandwidth = bandwidth
        self._clock = clock
        self._due = clock()

    def change(self, bandwidth: int) -> None:
        """Another limit, from now on."""
        if bandwidth != self._bandwidth:
            self._bandwidth = bandwidth
            self._due = self._clock()

    @property
    def quantum(self) -> int:
        """Bytes to write at once; 0 for any number."""
        return max(4096, int(self._bandwidth * _PACE_SECONDS)) if self._bandwidth else 0

    def delay(self) -> float:
        """Seconds until the next bytes are due; 0 if they are."""
        return max(0.0, self._due - self._clock()) if self._bandwidth else 0.0

    def charge(self, size: int) -> None:
        """Count `size` bytes as sent."""
        if self._bandwidth:
            earliest = self._clock() - _PACE_SECONDS
            self._due = max(self._due, earliest) + size / self._bandwidth


class BusyPoll:
    """A `poll` that spins for a moment before it gives up the processor.

    Waking up costs more than the rest of a fault's round trip, and while faults come the next one
    is near. `expect` says that something is due: waits are then busy for `seconds`, but yield to
    anything else that wants this processor, which may be the guest that was just woken.

    If that is a program which computes, it has the processor for a slice, and a fault waits for it;
    who sleeps is put in its place at once. So after a yield that was a slice, some waits sleep:
    more and more of them while spinning goes on to end so.
    """

    def __init__(self, seconds: float) -> None:
        self._poll = select.poll()
        self._seconds = seconds
        self._busy_until = 0.0
        self._to_sleep = 0
        """Waits that are to sleep."""
        self._slept = _SLEPT_AT_LEAST
        """How many were, after the last slice that was lost."""
        self._spun = 0
        """Waits since then that were busy."""

    def register(self, fd: int, events: int) -> None:
        self._poll.register(fd, events)

    def unregister(self, fd: int) -> None:
        self._poll.unregister(fd)

    def expect(self) -> None:
        self._busy_until = time.monotonic() + self._seconds

    @property
    def busy(self) -> float:
        """Seconds for which something is expected."""
        return max(0.0, self._busy_until - time.monotonic())

    def poll(self, seconds: float | None) -> list[tuple[int, int]]:
        """Like `select.poll.poll`, for at most `seconds` (None: for ever), at first busily."""
        ready = self._poll.poll(0)
        if ready or seconds == 0:
            return ready
        now = time.monotonic()
        end = math.inf if seconds is None else now + seconds
        busy_until = min(end, self._busy_until)
        if now < busy_until:
            if self._to_sleep:
                self._to_sleep -= 1
            else:
                self._spun += 1
                while now < busy_until:
                    os.sched_yield()
                    before, now = now, time.monotonic()
                    lost = now - before > _SLICE_SECONDS
                    if lost:
                        self._lost()
                    if ready := self._poll.poll(0):
                        return ready
                    if lost:
                        break
        if now >= end:
            return []
        return self._poll.poll(None if seconds is None else poll_milliseconds(end - now))

    def _lost(self) -> None:
        soon = self._spun < _SPUN_IN_PEACE
        self._slept = min(2 * self._slept, _SLEPT_AT_MOST) if soon else _SLEPT_AT_LEAST
        self._to_sleep = self._slept
        self._spun = 0


def wait_for(fd: int, events: int, abort: Abort, limit: float, what: str) -> None:
    """Wait until `fd` has one of `events` (or an error).

    Raises the abort's error, or OSError(ETIMEDOUT) after `limit` seconds (0: never).
    """
    poll = select.poll()
    poll.register(fd, events)
    poll.register(abort.fileno(), select.POLLIN)
    ready = poll_patiently(poll, limit)
    abort.check()
    if not ready:
        raise OSError(errno.ETIMEDOUT, f"{what}: no sign of life for {limit} s")


def check_reader(fd: int, what: str) -> None:
    """Raise OSError(EPIPE) if `what`, which reads the stream `fd`, has closed it: for those who
    wait for its answer by another way."""
    poll = select.poll()
    poll.register(fd, select.POLLRDHUP)
    if poll.poll(0):
        raise OSError(errno.EPIPE, f"stream: {what}, has closed it")


def advance(buffers: Sequence[Buffer], size: int) -> list[Buffer]:
    """The rest of `buffers` after their first `size` bytes; nothing is copied."""
    for index, buffer in enumerate(buffers):
        if size < len(buffer):
            rest = list(buffers[index:])
            if size:
                rest[0] = memoryview(buffer)[size:]
            return rest
        size -= len(buffer)
    return []


def take(buffers: Sequence[Buffer], size: int) -> list[Buffer]:
    """The first `size` bytes of `buffers`; nothing is copied."""
    taken: list[Buffer] = []
    for buffer in buffers:
        if size <= len(buffer):
            taken.append(memoryview(buffer)[:size])
            return taken
        taken.append(buffer)
        size -= len(buffer)
    return taken


class StreamOutput:
    """The sending end. `sent` counts the bytes written, for the `board` as well, which may change
    the `bandwidth`, and pause it."""

    def __init__(
        self,
        fd: int,
        abort: Abort,
        bandwidth: int = 0,
        what: str = "stream",
        board: Board | None = None,
    ) -> None:
        self.fd = fd
        self.sent = 0
        self._pacer = Pacer(bandwidth)
        self._abort = abort
        self._what = what
        self._bandwidth = bandwidth
        self._board = Board() if board is None else board
        self._words = self._board.ints
        self._writev: Callable[[int, Sequence[Buffer]], int] = os.writev

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers`, at the stream's pace.

        Raises the abort's error if there is one, else the write's (EPIPE, ENOSPC, ...) with the
        offset of the failure.
        """
        pending = buffers
        while pending:
            if delay := self.patience():
                self._sleep(delay)
                continue
            quantum = self._pacer.quantum
            if not quantum:
                self.write_now(pending)
                return
            self.write_now(take(pending, quantum))
            pending = advance(pending, quantum)

    def delay(self) -> float:
        """Seconds until the next bytes are due, by the board as it is now; 0 if they are."""
        if self._board.paused:
            bandwidth = _PAUSED_BANDWIDTH
        elif (bandwidth := self._words[Word.BANDWIDTH]) == AS_ASKED:
            bandwidth = self._bandwidth
        self._pacer.change(bandwidth)
        return self._pacer.delay()

    def patience(self) -> float:
        """Seconds to wait before looking at `delay` again; 0 if bytes are due."""
        return min(self.delay(), _OBEY_SECONDS)

    @property
    def paced(self) -> bool:
        """Whether it had a bandwidth when `delay` was last asked."""
        return self._pacer.quantum > 0

    def write_now(self, buffers: Sequence[Buffer]) -> None:
        """Write all of `buffers` regardless of the pace; later writes make up for it."""
        pending: Sequence[Buffer] = buffers
        while pending:
            self._abort.check()
            try:
                written = self._writev(self.fd, pending[:IOV_MAX])
            except BlockingIOError:
                wait_for(self.fd, select.POLLOUT, self._abort, 0, self._what)
                continue
            except OSError as error:
                self._abort.check()
                if error.errno == errno.EFAULT and self._writev is not bounce.writev:
                    self._writev = bounce.writev
                    continue
                raise OSError(
                    error.errno, f"{self._what}, write at offset {self.sent:#x}: {error.strerror}"
                ) from error
            self.sent += written
            self._words[_BYTES] = self.sent
            self._pacer.charge(written)
            self._abort.progress()
            pending = advance(pending, written)

    def _sleep(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self._abort.fileno(), select.POLLIN)
        poll.poll(poll_milliseconds(seconds))
        self._abort.check()
        self._abort.progress()


def _receive_all(fd: int, views: Sequence[Buffer]) -> int:
    """As os.readv of a socket, but waits for all bytes: each return to the interpreter costs, and
    a socket holds a twentieth of a large record."""
    receiver = socket(AF_UNIX, SOCK_STREAM, 0, fd)  # the family does not matter here
    try:
        return receiver.recvmsg_into(views, 0, MSG_WAITALL)[0]
    finally:
        receiver.detach()


class StreamInput:
    """The receiving end. Nothing is read that was not asked for: what follows the stream is another
    reader's. `ahead` says how many bytes more are sure to follow in the stream; as many of them as
    have come are kept for the next read, which spares a system call."""

    def __init__(
        self, fd: int, abort: Abort, what: str = "stream", board: Board | None = None
    ) -> None:
        self.fd = fd
        self._words = (Board() if board is None else board).ints
        self._received = 0
        self._kept = memoryview(b"")
        self._abort = abort
        self._what = what
        self._is_socket = stat.S_ISSOCK(os.fstat(fd).st_mode)
        self._readv: Callable[[int, Sequence[Buffer]], int] = os.readv

    @property
    def offset(self) -> int:
        """That of the next byte in the stream. The board has how many have come."""
        return self._received - len(self._kept)

    def read(self, size: int, what: str, ahead: int = 0) -> bytes:
        """Read exactly `size` bytes of `what`. Raises StreamEndError if the stream ends before.

        Memory is allocated as bytes arrive, since `size` may be a lie.
        """
        if size <= len(self._kept):
            taken, self._kept = self._kept[:size], self._kept[size:]
            return bytes(taken)
        if size <= _READ_CHUNK:
            buffer = bytearray(size)
            self.readinto([memoryview(buffer)], what, ahead)
            return bytes(buffer)
        gathered = bytearray()
        while len(gathered) < size:
            gathered += self.read(min(size - len(gathered), _READ_CHUNK), what)
        return bytes(gathered)

    def skip(self, size: int, what: str) -> None:
        """Read and discard `size` bytes."""
        scratch = memoryview(bytearray(min(size, _READ_CHUNK)))
        while size:
            part = scratch[: min(size, len(scratch))]
            self.readinto([part], what)
            size -= len(part)

    def readinto(self, views: Sequence[memoryview], what: str, ahead: int = 0) -> None:
        """Fill `views`. Raises StreamEndError if the stream ends before, and OSError."""
        missing = sum(map(len, views))
        pending: Sequence[Buffer] = views
        if self._kept and missing:
            taken = self._take_kept(views)
            missing -= taken
            pending = advance(views, taken)
        extra = memoryview(bytearray(ahead))
        while missing > 0:
            # Whoever waits for all of it does not wait for what may come much later.
            whole = self._is_socket and missing >= _LARGE
            taken = self._receive(pending if whole else [*pending, extra], what, whole=whole)
            if taken == 0:
                raise StreamEndError(
                    what, self.offset, f"the stream ends, {missing} bytes are missing"
                )
            missing -= taken
            pending = advance(pending, taken)
        if missing:
            self._kept = extra[:-missing]

    def read_some(self, views: Sequence[Buffer], what: str) -> int:
        """Read once; returns the number of bytes read, 0 at the end of the stream."""
        return self._take_kept(views) if self._kept else self._receive(views, what)

    def _take_kept(self, views: Sequence[Buffer]) -> int:
        """Fill views with bytes that have come already; returns how many they were."""
        before = len(self._kept)
        for view in views:
            part = self._kept[: len(view)]
            memoryview(view)[: len(part)] = part
            self._kept = self._kept[len(part) :]
        return before - len(self._kept)

    def _receive(self, views: Sequence[Buffer], what: str, *, whole: bool = False) -> int:
        """Read once; with `whole` (of a socket) until the views are full, the stream ends, or a
        signal comes."""
        self._abort.check()
        while True:
            readv = _receive_all if whole and self._readv is os.readv else self._readv
            try:
                taken = readv(self.fd, views[:IOV_MAX])
            except BlockingIOError:
                wait_for(self.fd, select.POLLIN, self._abort, 0, self._what)
                continue
            except OSError as error:
                self._abort.check()
                if error.errno == errno.EFAULT and self._readv is not bounce.readv:
                    self._readv = bounce.readv
                    continue
                raise OSError(
                    error.errno,
                    f"{self._what}, {what} at offset {self.offset:#x}: {error.strerror}",
                ) from error
            self._received += taken
            self._words[_BYTES] = self._received
            self._abort.progress()
            return taken
