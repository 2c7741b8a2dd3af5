"""What a save and a restore have in common: a stream and a helper that run at once and end as one,
their log and their reason."""

from __future__ import annotations

import asyncio
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from functools import partial
from typing import Any, Final, Generic, Protocol, TypeVar

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why, why, why_errno
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO, Operation, XentoollogLevel
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack import standstill
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import HelperResult, Statistics
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.operations.settle import DEAD, how_guest_ended, state_of
from xen_save_helper.toolstack.rules import join
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.join import Join, JoinAction, Task
from xen_save_helper.toolstack.rules.stream import OutOfTurn

Result = TypeVar("Result")
StreamAction_co = TypeVar("StreamAction_co", covariant=True)

Word = Callable[[], Awaitable[None]]
"""Says at one end, and hears at the other, that the stream is received: that the helper has what it
needs from its beginning, and the guest may be asked to suspend. Raises OSError."""


def promises_nothing() -> None:
    """The default of `on_transition` and `on_resume`, for callers that record no promise."""


def rc_of(error: BaseException) -> int:
    """The libxl code for a failed system or host call."""
    return Error.TIMEDOUT if isinstance(error, TimeoutError) else Error.FAIL


def has_device_model(config: Mapping[str, Any]) -> bool:
    """Whether a domain of this configuration (libxl_domain_config's JSON) has one: an HVM domain
    whose `device_model_version` is not `none`."""
    c_info, b_info = (config.get(part) for part in ("c_info", "b_info"))
    hvm = isinstance(c_info, Mapping) and c_info.get("type") == "hvm"
    none = isinstance(b_info, Mapping) and b_info.get("device_model_version") == "none"
    return hvm and not none


HELPER: Final = "xen-save-helper"
"""Context of our helper's own log lines, which are complete; to libxc's we add the errno."""


class OperationReport:
    """An operation's first failure, its log, and the helper's counts."""

    def __init__(self, ctx: Context, domid: int | None) -> None:
        self.domid = domid
        self.reason = ""
        self.why = Why()
        """The first failure's, as `reason` is."""
        self.statistics: Statistics | None = None
        self._ctx = ctx
        self._helper_error = ""
        """The helper's account of what went wrong: its first error with an errno (the others, its
        stderr among them, often follow from that one), or else its first."""
        self._helper_errno = False

    def failed(self, reason: str, why: Why = SYSTEM, **fields: object) -> None:
        """Log a failure; the first reason is the operation's."""
        text = reason if self.domid is None else f"domain {self.domid}: {reason}"
        self._ctx.say(XentoollogLevel.ERROR, "libxl", text)
        self._ctx.trace.event("failure", domid=self.domid, reason=reason, **why._asdict(), **fields)
        if not self.reason:
            self.reason, self.why = reason, why

    def cause(self, rc: int) -> dict[str, object]:
        """The fields of the operation's last event that tell why it failed, if it did."""
        return self.why._asdict() if rc else {}

    def event(self, event: str, **fields: object) -> None:
        self._ctx.trace.event(event, domid=self.domid, **fields)

    def helper_ended(self, result: HelperResult, rc: int, doing: str, done: str) -> None:
        """Note the helper's end, with the rc that it means. `doing` and `done` say what the helper
        was to do, and what was to be done to the guest."""
        self.statistics = result.statistics
        self.event(
            "helper_result",
            rc=rc,
            retval=result.retval,
            errnoval=result.errnoval,
            completed=result.completed,
        )
        if not rc:
            return
        if result.errnoval == errno.ESRCH and (end := self._end_of_guest()):
            self.failed(f"{end} while being {done}", Why(Cause.GUEST, errno.ESRCH), rc=rc)
            return
        why = result.reason or self._helper_error
        if not why and result.errnoval:
            why = os.strerror(result.errnoval)
        cause = result.why if result.rc else why_errno(result.errnoval)
        self.failed(f"{doing}: {why or 'the helper failed'}", cause, rc=rc)

    def _end_of_guest(self) -> str:
        """How the guest has ended, as a clause; "" if it has not, or that cannot be told."""
        assert self.domid is not None, "the helper works on a domain"
        try:
            state = state_of(self._ctx.host, self.domid)
        except OSError:
            return ""
        return how_guest_ended(state) if state is None or state in DEAD else ""

    def log_callback(self, level: int, errnoval: int, context: str, formatted: str) -> None:
        """The catalogue's `log`."""
        has_errno = errnoval not in {0, NO_ERRNO}
        if has_errno and context != HELPER and os.strerror(errnoval) not in formatted:
            formatted = f"{formatted}: {os.strerror(errnoval)}"
        if level >= XentoollogLevel.ERROR and (
            not self._helper_error or (has_errno and not self._helper_errno)
        ):
            self._helper_error, self._helper_errno = formatted, has_errno
        self._ctx.say(level, context, formatted)

    def progress_callback(self, context: str, doing_what: str, done: int, total: int) -> None:
        """The catalogue's `progress`; `context` is always libxc's own name."""
        self._ctx.say_progress(doing_what, done, total)


class StreamRules(Protocol[StreamAction_co]):
    """The events that the stream writer's rules and the stream reader's share."""

    def start_postcopy_transition(self) -> tuple[StreamAction_co, ...]: ...
    def helper_done(self, rc: int) -> tuple[StreamAction_co, ...]: ...
    def abort(self, rc: int) -> tuple[StreamAction_co, ...]: ...


class StreamOperation(ABC, Generic[StreamAction_co, Result]):
    """A save or restore, which runs once. `cancel` makes it end soon, in order, with
    ERROR_ABORTED."""

    def __init__(
        self, ctx: Context, domid: int | None, what: str, rules: StreamRules[StreamAction_co]
    ) -> None:
        """`what` is the value of an `Operation`; `rules` are the stream's."""
        self._ctx = ctx
        self._stream = rules
        self._what = what
        ctx.seams.begin(Operation(what))
        self._report = OperationReport(ctx, domid)
        self._join = Join()
        self._helper: SaveHelper | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._word: asyncio.Future[None] | None = None
        self._cancelled = False
        self._fault: BaseException | None = None
        self._completed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        self._cancelled = True
        if self._join.running(Task.STREAM) or self._join.running(Task.HELPER):
            self._fail(f"the {self._what} was cancelled", Error.ABORTED, Why(Cause.ABORTED))

    async def run(self) -> Result:
        with standstill.telling(self._ctx):
            return await self._run()

    @abstractmethod
    async def _run(self) -> Result:
        """Run the whole operation. Raises only if there is a bug."""

    @abstractmethod
    def _do(self, actions: tuple[StreamAction_co, ...]) -> None:
        """Carry out what the stream's rules decide."""

    @property
    @abstractmethod
    def _is_whole(self) -> bool:
        """Whether the guest runs at the destination and all its pages are there: the operation does
        not fail by anything that goes wrong with the stream after that."""

    @abstractmethod
    def _joined(self, rc: int) -> None:
        """Stream and helper have stopped; `rc` is the first failure's."""

    @abstractmethod
    def _helper_done(self, result: HelperResult) -> None:
        """The helper has ended."""

    def _fail(self, reason: str, rc: int, why: Why = SYSTEM) -> None:
        self._report.failed(reason, why, rc=rc)
        self._do_join(self._join.fail(rc))

    def _do_join(self, actions: tuple[JoinAction, ...]) -> None:
        for action in actions:
            match action:
                case join.AbortTask(Task.STREAM, rc):
                    self._do(self._stream.abort(rc))
                case join.AbortTask(Task.HELPER, rc):
                    if self._helper is not None:
                        self._helper.abort(int(rc), self._report.reason)
                case join.Unwind():
                    self._do_join(self._join.unwound())
                case join.Complete(rc):
                    self._joined(rc)

    def _run_helper(
        self,
        request: HelperRequest,
        callbacks: Mapping[str, Callable[..., int | None]],
        admission: float = 0.0,
    ) -> None:
        """Start the helper, with `callbacks` beside those of every operation; `admission` is
        `HelperLaunch`'s."""
        self._join.started(Task.HELPER)
        self._helper = SaveHelper(
            request,
            {
                "log": self._report.log_callback,
                "progress": self._report.progress_callback,
                **callbacks,
            },
            self._helper_done,
            limits=self._ctx.limits,
            trace=self._ctx.trace,
            program=self._ctx.program,
            open_zmq=self._ctx.seams.open_zmq,
            admission=admission,
            waits=self._ctx.warn,
            stood_still=partial(standstill.tell, self._ctx, standstill.HELPER),
            board_fd=-1 if self._ctx.control is None else self._ctx.control.board.fd,
        )
        self._helper.start()

    def _stream_stopped(self, rc: int) -> None:
        self._do_join(self._join.stopped(Task.STREAM, 0 if self._is_whole else rc))

    def _helper_stopped(self, rc: int) -> None:
        self._do_join(self._join.stopped(Task.HELPER, rc))
        self._do(self._stream.helper_done(rc))

    def _on_postcopy_transition(self) -> None:
        self._report.event("postcopy_transition")
        try:
            actions = self._stream.start_postcopy_transition()
        except OutOfTurn as error:
            self._report.failed(str(error), Why(Cause.PROTOCOL))
            self._answer("postcopy_transition", 0)
            return
        self._do(actions)

    def _promise(self, promise: Callable[[], None], failure: str) -> int:
        """Record the point of no return. Returns the rc; `failure` says what cannot be done."""
        try:
            promise()
        except Exception as error:
            self._report.failed(f"{failure}: {message_of(error)}", why(error))
            return rc_of(error)
        return 0

    async def _host_call(
        self, failure: str, limit: float, function: Callable[..., object], *arguments: object
    ) -> int:
        """Call the host's `function`. Returns the rc; `failure` says what cannot be done."""
        try:
            await blocking.call(limit, function, *arguments)
        except (OSError, ValueError) as error:
            self._report.failed(f"{failure}: {error}", why(error))
            return rc_of(error)
        return 0

    def _answer(self, callback: str, value: int) -> None:
        """Answer the async `callback` if the helper still waits for it: an aborted helper has been
        refused, and may be waiting for the answer to another."""
        if self._helper is not None:
            self._helper.async_callback_done(value, callback)

    def _past_return(self) -> None:
        """From here on, only the destination may have the guest's newest state."""
        if self._helper is not None:
            self._helper.wait_for_ever()

    async def _passes(self, word: Word | None) -> bool:
        """Say, or hear, the word that the stream is received. If it does not pass, the operation
        fails; False then, and if it has failed meanwhile."""
        if word is None:
            return True
        passing = self._word = asyncio.ensure_future(word())
        await asyncio.wait({passing})
        self._word = None
        if passing.cancelled():
            return False
        try:
            passing.result()
        except OSError as error:
            self._fail(message_of(error), rc_of(error), why(error))
            return False
        return True

    def _give_up_word(self) -> None:
        if self._word is not None:
            self._word.cancel()

    async def _tasks_ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (fault := task.exception()) is None:
            return
        self._faulted(fault)

    def _faulted(self, fault: BaseException) -> None:
        """End the operation in order for a bug, too, which is raised then."""
        self._fault = self._fault or fault
        self._fail(f"fault: {fault!r}", Error.FAIL)
