"""Python functions that C calls: no exception escapes into C, and none is lost.

An exception in a callback fails that callback, which takes libxc into its error path; one in a
function that cannot fail (a log line) asks for an abort, to the same end. The first is kept for the
engine to raise once libxc has returned.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import Channel
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.hypervisors.xen.toollog import Logger
from xen_save_helper.helper.libxenguest.thread_meter import ThreadMeter
from xen_save_helper.ipc_schema.board import Board, Word
from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, XentoollogLevel
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage
from xen_save_helper.ipc_schema.trace import Trace

_U32: Final = 2**32 - 1
_FRAMES: Final = "Frames"
"""How libxc's progress names a round over the guest's memory: `Frames iteration 0`, …"""
_VERIFY: Final = "Frames verify"


class Callbacks:
    """The functions that libxc calls during one save or restore, through `channel`.

    `meter` is told about the bytes moved in here, so that it counts the stream's only; None if
    nobody needs that count.
    """

    def __init__(
        self,
        channel: Channel,
        abort: Abort,
        trace: Trace,
        meter: ThreadMeter | None,
        board: Board | None = None,
    ) -> None:
        self.error: BaseException | None = None
        """The first exception, with the callback's name in its notes."""
        self.complaint = ""
        """The first line that libxc logged as an error; later ones are its consequences."""
        self.rounds = 0
        self.frames = 0
        """Rounds over the memory that libxc completed, and pfns that it covered in them."""
        self._channel = channel
        self.reporter = Reporter(channel, abort, trace, board=board)
        self._board = self.reporter.board
        self._of_stream: Callable[[], int] = int
        self._abort = abort
        self._trace = trace
        self._meter = meter
        self._round_began = time.monotonic()

    def begin(self, phase: Phase | Stage, meter: ThreadMeter) -> None:
        """Keep the board from here on: libxc's own phases are known by its callbacks only."""
        self._board.phase = phase.value
        self._of_stream = meter.of_stream

    def guard_stream(self, fd: int, meter: ThreadMeter, *, reading: bool = False) -> None:
        """Have the abort guard the stream, and see by `meter` whether it stands still. If that
        cannot be seen there is no limit, since a slow stream must not be taken for a stalled
        one."""
        if not meter.counts:
            self.reporter.log(
                XentoollogLevel.WARN,
                "this kernel does not count what a thread reads and writes "
                "(CONFIG_TASK_IO_ACCOUNTING): a stream that stands still is not noticed, and its "
                "rate is unknown",
            )
            self._abort.without_stall_limit()
        self._abort.guard_stream(fd, reading=reading, moved=meter.moved)

    def logger(self) -> Logger:
        return Logger(self._log, self._progress, self._failed_to_tell)

    def ask(self, name: str) -> Callable[..., int]:
        """A C function for the callback `name`: its arguments are the catalogue's fields, and
        `data`."""
        message = CATALOGUE[name]
        names = [field.name for field in message.fields]
        refusal = message.refusal or 0

        def callback(*arguments: Any) -> int:
            return self.reporter.call(name, **dict(zip(names, arguments, strict=False)))

        return self.guard(name, callback, refusal)

    def tell(self, name: str) -> Callable[..., None]:
        """A C function for the message `name`, which has no answer."""
        names = [field.name for field in CATALOGUE[name].fields]

        def callback(*arguments: Any) -> None:
            try:
                with self._aside():
                    self.reporter.tell(name, **dict(zip(names, arguments, strict=False)))
            except BaseException as error:
                self._failed_to_tell(name, error)

        return callback

    def guard(self, name: str, body: Callable[..., int], refusal: int) -> Callable[..., int]:
        """Wrap `body` for C: if it raises, the answer is `refusal`, and libxc finds the error's
        errno."""

        def callback(*arguments: Any) -> int:
            try:
                with self._aside():
                    return body(*arguments)
            except BaseException as error:
                self._keep(name, error)
                ctypes.set_errno(getattr(error, "errno", None) or errno.EIO)
                return refusal

        return callback

    def check(self, function: str, retval: int, errnoval: int) -> None:
        """Check libxc's result: raise what a callback raised, or OSError for a failure, or for an
        abort even if libxc succeeded: it takes a broken checkpointed stream for the primary's
        death, and one that became unusable after its last byte for complete."""
        if self.error is not None:
            raise self.error
        if self._abort.requested and not retval:
            raise OSError(self._abort.errnoval, f"{function} finished in spite of the abort")
        if retval:
            what = self.complaint or os.strerror(errnoval)
            raise OSError(errnoval or errno.EIO, f"{function} failed: {what}")

    def _log(self, level: int, errnoval: int, context: str, formatted: str) -> None:
        if level >= XentoollogLevel.ERROR:
            self.complaint = self.complaint or formatted
        with self._aside():
            self._trace.event("log", level=level, context=context, text=formatted)
            self._channel.tell(
                "log",
                level=level,
                errnoval=errnoval & _U32,
                context=context,
                formatted=formatted,
            )

    def _progress(self, context: str, doing_what: str, done: int, total: int) -> None:
        with self._aside():
            self._count(doing_what, done, total)
            if 0 < done == total and doing_what.startswith(_FRAMES) and doing_what != _VERIFY:
                self._round_ended(doing_what, total)
            self._channel.tell(
                "progress", context=context, doing_what=doing_what, done=done, total=total
            )

    def _count(self, doing_what: str, done: int, total: int) -> None:
        board = self._board
        if board.reals[Word.SUSPENDED_AT] and board.phase != Phase.STOP_AND_COPY.value:
            board.phase = Phase.STOP_AND_COPY.value
        if doing_what.startswith(_FRAMES):
            board.ints[Word.ROUND_DONE], board.ints[Word.ROUND_TOTAL] = done, total
        board.ints[Word.BYTES] = self._of_stream()

    def _round_ended(self, doing_what: str, frames: int) -> None:
        self.rounds += 1
        self._board.ints[Word.ROUNDS] = self.rounds
        self.frames += frames
        now = time.monotonic()
        seconds = round(now - self._round_began, 6)
        self._round_began = now
        self._trace.event("round", doing_what=doing_what, frames=frames, seconds=seconds)

    def _aside(self) -> AbstractContextManager[None]:
        return nullcontext() if self._meter is None else self._meter.aside()

    def _failed_to_tell(self, name: str, error: BaseException) -> None:
        self._keep(name, error)
        self._abort.request(getattr(error, "errno", None) or errno.EIO, f"{name}: {error}")

    def _keep(self, name: str, error: BaseException) -> None:
        if self.error is None:
            self.error = error
            error.add_note(f"in libxc's callback {name}")
        self._trace.event(
            "failure",
            callback=name,
            error=f"{type(error).__name__}: {error}",
            **why(error)._asdict(),
        )
