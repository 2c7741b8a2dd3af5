"""Start, supervise and end one save helper: libxl_save_callout.c, with an end to every wait."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from xen_save_helper.ipc_schema.causes import errno_of
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    NO_ERRNO,
    Answer,
    Message,
    Operation,
    StreamType,
    XentoollogLevel,
)
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import Error, rc_name
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.aio import descriptors
from xen_save_helper.toolstack.aio.patience import Timer
from xen_save_helper.toolstack.helpers.channel import HelperChannel
from xen_save_helper.toolstack.helpers.launch import HelperLaunch, OpenZmq, open_zmq
from xen_save_helper.toolstack.helpers.process import HelperProcess
from xen_save_helper.toolstack.helpers.request import (
    OUR_HELPER,
    Callbacks,
    HelperProgram,
    HelperResult,
    PageServer,
    Statistics,
)
from xen_save_helper.toolstack.helpers.watch import HelperWatch
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.rules.helper_run import (
    HelperAction,
    HelperEvent,
    HelperPhase,
    HelperRun,
)

ERROR_PATH: Final = frozenset({"switch_qemu_logdirty"})
"""Callbacks that an aborted save still makes, and that are still answered."""

_DEATH_SECONDS: Final = 0.1
"""How long a dying process may need from the end of its connection to its own."""

_DRAIN_LIMIT: Final = 0.5
"""Seconds that the last messages of an ended process may need to arrive."""


class SaveHelper:
    """One run of a helper (libxl__save_helper_state). Needs a running asyncio loop."""

    def __init__(
        self,
        request: HelperRequest,
        callbacks: Callbacks,
        done: Callable[[HelperResult], None],
        *,
        limits: Limits,
        trace: Trace,
        program: HelperProgram = OUR_HELPER,
        open_zmq: OpenZmq = open_zmq,
        stood_still: Callable[[float], object] = lambda _seconds: None,
        admission: float = 0.0,
        waits: Callable[[str], object] = lambda _line: None,
    ) -> None:
        """`stood_still` is called with the seconds for which the helper was stopped, when it
        continues; `waits` with a line now and then while nothing moves. For `admission` see
        `HelperLaunch`."""
        for name in callbacks:
            if request.operation not in CATALOGUE[name].operations:
                raise ValueError(f"{name} is not a callback of a {request.operation.value}")
        self._callbacks = callbacks
        self._tell_wait = waits
        provided = frozenset(callbacks)
        self._launch = HelperLaunch(request, provided, program, limits, open_zmq, admission)
        self._done = done
        self._limits = limits
        self._trace = trace
        self._run = HelperRun(needs_results=request.operation is Operation.RESTORE)
        self._loop = asyncio.get_running_loop()
        self._channel: HelperChannel | None = None
        self._process: HelperProcess | None = None
        self._waiting: Message | None = None
        self._limit: Timer | HelperWatch | None = None
        """The current phase's limit."""
        self._answer_limit: Timer | None = None
        self._waits_for_ever = request.stream_type is not StreamType.PLAIN
        self._tell_stop = stood_still
        self._last_words = ""
        self._reaped = False
        self._statistics: Statistics | None = None
        self._page_server: PageServer | None = None
        self._done_called = False

    @property
    def running(self) -> bool:
        """Whether `done` is still to come."""
        return not self._done_called

    def start(self) -> None:
        """Start the process, unless it was aborted before. Errors go to `done` (ERROR_FAIL); none
        is raised here."""
        if self._run.phase is not HelperPhase.NEW:
            return
        copies: list[int] = []
        try:
            # The helper has its own 0, 1 and 2, so it gets copies with other numbers.
            request = self._launch.request
            for fd in (request.io_fd, request.back_fd):
                copies.append(descriptors.duplicate(fd))
            io_fd, back_fd = copies
            request = request._replace(io_fd=io_fd, back_fd=back_fd)
            self._launch = replace(self._launch, request=request)
            self._channel = self._launch.channel(self)
            arguments = self._channel.process_arguments
            self._process = HelperProcess(
                (*self._launch.command(), *arguments.arguments),
                pass_fds=(*(fd for fd in copies if fd >= 0), *arguments.pass_fds),
                stdin=arguments.stdin,
                stdout=arguments.stdout,
                environment=self._launch.environment(),
                line=self._stderr_line,
                ended=self._exited,
                stopped_limit=self._limits.stopped,
                stood_still=self._tell_stop,
            )
        except OSError as error:
            self._event(
                HelperEvent.START_FAILED,
                f"cannot start the save helper: {error}",
                errnoval=errno_of(error),
            )
            return
        finally:
            for fd in copies:
                if fd >= 0:
                    os.close(fd)
        self._trace.event("helper_started", helper=self._process.pid)
        self._event(HelperEvent.STARTED)
        self._channel.listen()

    def async_callback_done(self, value: int, callback: str = "") -> None:
        """Answer the outstanding async callback, which must be `callback` if that is given.

        Does nothing if it is no longer outstanding: the helper was aborted or has ended.
        """
        if self._waiting is not None and callback in ("", self._waiting.name):
            self._answer(self._waiting, value)

    def abort(self, rc: int, reason: str = "") -> None:
        """Send SIGTERM, and SIGKILL after `limits.abort`; `done` gets `rc` unless one is set. An
        outstanding async callback is refused, so that the helper's error path runs."""
        self._event(HelperEvent.ABORT, reason or f"aborted with {rc_name(rc)}", rc)

    def wait_for_ever(self) -> None:
        """Drop the limit of our answers: what giving up would lose is worth any wait. The helper's
        death and the stream's own limit still end the run."""
        self._waits_for_ever = True
        self._clear_answer_limit()

    # ChannelListener

    def hello(self) -> None:
        assert self._channel is not None
        self._trace.event("helper_ready")
        self._event(HelperEvent.HELLO)
        try:
            self._channel.start(self._launch.start_fields())
        except OSError as error:
            self._event_unless_dying(HelperEvent.REPLY_FAILED, str(error), errno_of(error))
        except ValueError as error:
            self._event(HelperEvent.REPLY_FAILED, str(error))

    def message(self, message: Message, fields: dict[str, Any]) -> None:
        self._trace.event("callback", name=message.name, **fields)
        if isinstance(self._limit, HelperWatch):
            self._limit.heard()
        if message.answer is not Answer.NONE:
            self._waiting = message
        match message.name:
            case "complete":
                self._complete(message, **fields)
            case "statistics":
                self._statistics = Statistics(**fields)
            case "page_server":
                self._page_server = PageServer(**fields)
            case "log" | "progress":
                if message.name in self._callbacks:
                    self._call(message, fields)
            case "restore_results":
                self._run.results()
                if message.name in self._callbacks:
                    self._call(message, fields)
            case _ if self._run.phase is HelperPhase.ABORTING and message.name not in ERROR_PATH:
                self._refuse(message)
            case _:
                self._call(message, fields)

    def violation(self, reason: str) -> None:
        self._event(HelperEvent.VIOLATION, reason)

    def lost(self, reason: str) -> None:
        self._event_unless_dying(HelperEvent.CHANNEL_LOST, reason)

    def _event_unless_dying(self, event: HelperEvent, reason: str, errnoval: int = 0) -> None:
        """Report `event`, unless the process is dying: it closes its connection first, and how it
        died is the better reason."""
        assert self._process is not None
        process, patience = self._process, Patience(self._limits.abort, self._loop.time())

        def decide() -> None:
            if self._reaped:
                return
            if process.exiting() and not patience.look(self._loop.time()):
                self._loop.call_later(_DEATH_SECONDS, decide)
            else:
                self._event(event, reason, errnoval=errnoval)

        self._loop.call_later(_DEATH_SECONDS, decide)

    def stranger(self, reason: str) -> None:
        self._trace.event("stranger_refused", reason=reason)
        self._log(
            XentoollogLevel.WARN, f"a stranger at the helper's endpoint was refused: {reason}"
        )

    # Callbacks

    def _call(self, message: Message, fields: dict[str, Any]) -> None:
        if message.answer is Answer.ASYNC and not self._waits_for_ever:
            self._answer_limit = Timer(self._limits.callback, partial(self._answer_late, message))
        try:
            value = self._callbacks[message.name](**fields)
            if message.answer is Answer.SYNC:
                if value is None:
                    raise TypeError(f"the {message.name} callback returned no answer")
                if self._waiting is message:  # an abort within it has answered already
                    self._answer(message, value)
        except Exception as error:
            self._callback_failed(message, error)

    def _callback_failed(self, message: Message, error: Exception) -> None:
        """End in order after a bug in the caller's callback."""
        what = f"the {message.name} callback failed"
        self._loop.call_exception_handler({"message": what, "exception": error})
        self._refuse(message)
        self.abort(Error.FAIL, f"{what}: {error!r}")

    def _answer(self, message: Message, value: int) -> None:
        """Answer `message`. Raises ValueError for an invalid answer; it stays outstanding then."""
        assert self._channel is not None
        self._trace.event("answer", name=message.name, value=value)
        failure: OSError | None = None
        try:
            self._channel.answer(message, value)
        except OSError as error:
            failure = error
        self._waiting = None
        self._clear_answer_limit()
        if failure is not None:
            errnoval = errno_of(failure)
            self._event_unless_dying(HelperEvent.REPLY_FAILED, str(failure), errnoval)

    def _refuse(self, message: Message) -> None:
        if self._waiting is message and message.refusal is not None:
            self._answer(message, message.refusal)

    def _answer_late(self, message: Message) -> None:
        self._answer_limit = None
        reason = f"no answer to {message.name} within {self._limits.callback} s"
        self._event(HelperEvent.LIMIT, reason)

    def _complete(self, message: Message, retval: int, errnoval: int) -> None:
        self._answer(message, 0)
        self._do(self._run.complete(retval, errnoval))

    # The process

    def _stderr_line(self, line: str) -> None:
        self._last_words = line or self._last_words
        self._trace.event("helper_stderr", line=line)
        self._log(XentoollogLevel.ERROR, line)

    def _log(self, level: XentoollogLevel, text: str) -> None:
        """Put a line of our own among the helper's."""
        if "log" in self._callbacks:
            fields = {"level": int(level), "errnoval": NO_ERRNO, "formatted": text}
            self._call(CATALOGUE["log"], {**fields, "context": "xen-save-helper"})

    async def _exited(self, status: int) -> None:
        assert self._channel is not None
        self._reaped = True
        self._trace.event("helper_exited", status=status)
        await self._channel.drain(_DRAIN_LIMIT)
        self._do(self._run.exited(status, self._last_words))

    # What the rules decide

    def _event(
        self, event: HelperEvent, reason: str = "", rc: int = 0, *, errnoval: int = 0
    ) -> None:
        actions = self._run.event(event, reason, rc, errnoval)
        if reason and actions:
            self._trace.event("helper_run", what=event.name.lower(), reason=reason)
        self._do(actions)

    def _do(self, actions: tuple[HelperAction, ...]) -> None:
        for action in actions:
            match action:
                case HelperAction.STOP_LISTENING:
                    self._stop_listening()
                case HelperAction.TERMINATE:
                    self._terminate()
                case HelperAction.KILL:
                    assert self._process is not None
                    self._process.kill()
                case HelperAction.LIMIT_START:
                    self._set_limit(self._limits.helper_start, "say hello")
                case HelperAction.LIMIT_SILENCE:
                    self._watch()
                case HelperAction.LIMIT_ABORT:
                    self._set_limit(self._limits.abort, "end")
                case HelperAction.NO_LIMIT:
                    self._clear_limit()
                case HelperAction.DONE:
                    self._finish()

    def _clear_answer_limit(self) -> None:
        if self._answer_limit is not None:
            self._answer_limit.cancel()
            self._answer_limit = None

    def _stop_listening(self) -> None:
        self._clear_answer_limit()
        self._waiting = None
        if self._channel is not None:
            self._channel.stop_listening()

    def _terminate(self) -> None:
        assert self._channel is not None
        assert self._process is not None
        try:
            self._channel.abort(self._run.rc, self._run.reason)
        except OSError as error:
            self._trace.event("abort_not_sent", error=str(error))
        self._process.terminate()
        if self._waiting is not None and self._waiting.name not in ERROR_PATH:
            self._refuse(self._waiting)

    def _set_limit(self, seconds: float, what: str) -> None:
        assert self._process is not None
        self._clear_limit()
        reason = f"the helper did not {what} within {seconds} s"
        over = partial(self._event, HelperEvent.LIMIT, reason)
        self._limit = Timer(seconds, over, self._process.stopped)

    def _watch(self) -> None:
        """Watch for signs of life, from hello on."""
        assert self._process is not None
        self._clear_limit()
        self._limit = HelperWatch(
            self._process,
            silence=self._launch.silence,
            waits=lambda: self._waiting is not None,
            told=self._tell_wait,
            over=partial(self._event, HelperEvent.LIMIT),
        )

    def _clear_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _finish(self) -> None:
        self._clear_limit()
        if self._channel is not None:
            self._channel.close()
        run = self._run
        result = HelperResult(
            rc=run.rc,
            retval=run.retval,
            errnoval=run.errnoval,
            reason=run.reason,
            why=run.why,
            statistics=self._statistics,
            completed=run.completed,
            page_server=self._page_server,
        )
        self._done_called = True
        # Never on top of the caller's start or abort.
        self._loop.call_soon(self._done, result)
