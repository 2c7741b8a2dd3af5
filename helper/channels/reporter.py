"""How the engine talks: timed callbacks, log lines, progress at a bounded rate, and the trace."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import Channel
from xen_save_helper.ipc_schema.board import Board, Word
from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO, XentoollogLevel
from xen_save_helper.ipc_schema.trace import Trace

_PROGRESS_SECONDS = 0.1


class Reporter:
    """The controller as the engine sees it. `context` is that of log and progress lines, `board`
    (by default one that nobody sees) that of the engine's counters."""

    def __init__(
        self,
        channel: Channel,
        abort: Abort,
        trace: Trace,
        context: str = "xc",
        board: Board | None = None,
    ) -> None:
        self.board = Board() if board is None else board
        self._channel = channel
        self._abort = abort
        self._trace = trace
        self._context = context
        self._next_progress = 0.0

    def provides(self, name: str) -> bool:
        return self._channel.provides(name)

    def call(self, name: str, **fields: int | str) -> int:
        """Make the callback `name`; the stream's stall clock is stopped meanwhile.

        Raises ChannelError, and OSError(EINVAL) if the controller does not provide `name`.
        """
        if not self._channel.provides(name):
            raise OSError(errno.EINVAL, f"the controller provides no {name} callback")
        self._abort.idle()
        self.board.callback = name
        started = time.monotonic()
        value = self._channel.call(name, **fields)
        ended = time.monotonic()
        self.board.callback = ""
        if name == "suspend" and value == 1:
            self.board.reals[Word.SUSPENDED_AT] = ended
        seconds = round(ended - started, 6)
        self._abort.progress()
        self._trace.event("callback", name=name, value=value, seconds=seconds, **fields)
        return value

    def transition(self) -> bool:
        """Make the callback `postcopy_transition`; returns whether it succeeded. As soon as the
        controller has it, the guest's newest state may be at the other side."""
        self._channel.wait_for_ever()
        return self.call("postcopy_transition") == 1

    def tell(self, name: str, **fields: int | str) -> None:
        self._abort.alive()
        self._channel.tell(name, **fields)

    def log(self, level: XentoollogLevel, text: str, errnoval: int = NO_ERRNO) -> None:
        if seconds := self._abort.take_stood_still():
            self._trace.event("stood_still", seconds=round(seconds, 3))
            self.log(XentoollogLevel.WARN, f"this process stood still for {seconds:.0f} s")
        self._channel.tell(
            "log", level=int(level), errnoval=errnoval, context=self._context, formatted=text
        )

    def info(self, text: str) -> None:
        self.log(XentoollogLevel.INFO, text)

    def detail(self, text: str) -> None:
        self.log(XentoollogLevel.DETAIL, text)

    def progress(self, doing_what: str, done: int, total: int) -> None:
        """Report progress, unless the last report is recent and this is not the end."""
        self._abort.alive()
        now = time.monotonic()
        if now < self._next_progress and done < total:
            return
        self._next_progress = now + _PROGRESS_SECONDS
        self._channel.tell(
            "progress",
            context=self._context,
            doing_what=doing_what,
            done=min(done, total),
            total=total,
        )

    def event(self, event: str, **fields: object) -> None:
        self._trace.event(event, **fields)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Log and trace a phase: when it began, how long it took, or how it failed."""
        self.detail(f"phase {name}")
        self._abort.alive()
        self.board.phase = name
        self._trace.event("phase", name=name, state="begin")
        started = time.monotonic()
        try:
            yield
        except BaseException as error:
            self._trace.event("failure", phase=name, error=str(error), **why(error)._asdict())
            raise
        seconds = round(time.monotonic() - started, 6)
        self._trace.event("phase", name=name, state="end", seconds=seconds)
