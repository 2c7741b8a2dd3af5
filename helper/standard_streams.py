"""stdin, stdout and stderr of a process whose exit status says what it has done.

Output that cannot be printed (no room, a reader or terminal that is gone, a descriptor that was
closed before the start) is lost without an exception: neither from `print` nor from the
interpreter's flush at exit, which would change the exit status.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import sys
import threading
from collections.abc import Iterator

from xen_save_helper.ipc_schema.hints import Any, Final, TextIO

_AT_ONCE: Final = select.PIPE_BUF
"""Bytes that a pipe takes without blocking once it polls writable."""

_LOOK_MILLISECONDS: Final = 100
"""How soon a waiting stream notices that it is `hurried`."""

_GATHERED: Final = 1 << 13
_KEPT: Final = 1 << 20
"""Bytes that a hurried stream keeps for later, at most."""


class Output(io.TextIOBase):
    """A text stream onto the descriptor `fd`. `error` is what ended it; anything written after that
    is lost. Once `hurried` is set, which may be done at any time, nothing waits for a reader or
    terminal that takes nothing at the moment: the output is kept for a later write or flush. While
    `quiet` is set, what is written is dropped, and no terminal is there.

    Threads may write to it concurrently, and so may a signal handler in the middle of a write."""

    def __init__(self, fd: int, encoding: str) -> None:
        self.error: OSError | None = None
        self.hurried = False
        self.quiet = False
        self._fd = fd
        self._encoding = encoding
        self._line_by_line = fd == 2 or os.isatty(fd)
        self._pending = bytearray()
        self._lock = threading.RLock()
        self._draining = False
        self._status = self._shown = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # as TextIOWrapper's
        return self._encoding

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return not self.quiet and os.isatty(self._fd)

    def write(self, text: str, /) -> int:
        if self.quiet:
            return len(text)
        with self._lock:
            status, self._status = self._status, ""
            self._paint()
            if len(self._pending) < _KEPT or not self.hurried:
                self._pending += text.encode(self._encoding, "backslashreplace")
            if self._line_by_line or len(self._pending) >= _GATHERED:
                self._drain(whole_lines=True)
            self._status = status
            self._paint()
        return len(text)

    def show_status(self, text: str) -> None:
        """Show `text`, one line, as the terminal's last line, in place of the previous status; an
        empty text removes it. Skipped if the terminal takes nothing at the moment."""
        with self._lock:
            self._status = text
            self._paint()

    def _paint(self) -> None:
        if self._status != self._shown and self.takes():
            self._shown = self._status
            self._pending += f"\r{self._shown}\x1b[K".encode(self._encoding, "replace")
            self.flush()

    def flush(self) -> None:
        with self._lock:
            self._drain()

    def takes(self) -> bool:
        """Whether it would take something now, with nothing pending."""
        return self.error is None and not self._pending and bool(self._poll(0))

    def lost(self) -> OSError | None:
        """Give up anything pending; returns `error`."""
        if self._pending and self.error is None:
            self._give_up(OSError(errno.EINTR, os.strerror(errno.EINTR)))
        return self.error

    def _give_up(self, error: OSError) -> None:
        self.error = error
        self._pending.clear()

    def _drain(self, *, whole_lines: bool = False) -> None:
        if self._draining:
            return  # a signal handler has interrupted the writer, which will write this too
        self._draining = True
        try:
            while self.error is None:
                ready = self._pending.rfind(b"\n") + 1 if whole_lines else len(self._pending)
                if not ready:
                    return
                if self._poll(0 if self.hurried else _LOOK_MILLISECONDS):
                    self._write(min(ready, _AT_ONCE))
                elif self.hurried:
                    return
            self._pending.clear()
        finally:
            self._draining = False

    def _write(self, size: int) -> None:
        try:
            written = os.write(self._fd, self._pending[:size])
        except BlockingIOError:
            return  # another process has made it non-blocking
        except OSError as error:
            self._give_up(error)
            return
        del self._pending[:written]

    def _poll(self, milliseconds: int) -> list[tuple[int, int]]:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return poll.poll(milliseconds)


def open_missing() -> None:
    """Open those of 0, 1 and 2 that are closed, in the direction in which nobody uses them: a file
    that is opened later must not land there and be taken for a standard stream."""
    for fd, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(fd)
        except OSError:
            # This is the lowest free descriptor. Programs that we start inherit it.
            os.set_inheritable(os.open(os.devnull, mode), True)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Replace stdout and stderr by an `Output` each for as long as the context lasts. One that has
    been replaced already stays as it is."""
    open_missing()
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _output(1, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _output(2, sys.__stderr__)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def _output(fd: int, of_the_interpreter: TextIO | None) -> TextIO:
    encoding = "utf-8" if of_the_interpreter is None else of_the_interpreter.encoding
    output: Any = Output(fd, encoding)
    stream: TextIO = output
    return stream


@contextlib.contextmanager
def hurried(stream: TextIO) -> Iterator[None]:
    """Have nothing wait for output to a standard stream for as long as the context lasts."""
    if not isinstance(stream, Output):
        yield
        return
    stream.hurried = True
    try:
        yield
    finally:
        stream.hurried = False


@contextlib.contextmanager
def quietened(*streams: TextIO, quiet: bool = True) -> Iterator[None]:
    """Drop what is written to standard streams for as long as the context lasts; `quiet=False` lets
    it through in the middle of that."""
    those = [stream for stream in streams if isinstance(stream, Output)]
    before = [stream.quiet for stream in those]
    for stream in those:
        stream.quiet = quiet
    try:
        yield
    finally:
        for stream, was in zip(those, before, strict=True):
            stream.quiet = was


def hurry(stream: TextIO) -> None:
    """Have nothing wait for output to a standard stream from here on. May be called at any time,
    also from a signal handler."""
    if isinstance(stream, Output):
        stream.hurried = True


def lost(stream: TextIO) -> OSError | None:
    """Why output to a standard stream was lost; None if it was not."""
    stream.flush()
    return stream.lost() if isinstance(stream, Output) else None
