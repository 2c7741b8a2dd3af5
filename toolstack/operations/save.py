"""One save: carries out what the stream writer, the join and the suspend rules decide.

libxl_dom_save.c and the asynchronous part of libxl_stream_write.c.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why, why
from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy, XCFlags
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.channel.waits import BUFFERED
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.steering import Steering
from xen_save_helper.ipc_schema.streams import libxl_stream
from xen_save_helper.ipc_schema.streams.libxl_stream import EmulatorId, RecordType
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import (
    HelperResult,
    PageServer,
    PipeHelper,
    Statistics,
    asks_for_policy,
)
from xen_save_helper.toolstack.operations.settle import heal, why_not_suspend
from xen_save_helper.toolstack.operations.stream_operation import StreamOperation, Word, rc_of
from xen_save_helper.toolstack.operations.suspend import GuestSuspension
from xen_save_helper.toolstack.rules import stream, stream_write
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.join import Task
from xen_save_helper.toolstack.rules.precopy_policy import (
    MemoryStrategy,
    PrecopyDecisions,
    PrecopyProgress,
)
from xen_save_helper.toolstack.rules.stream_write import (
    Part,
    StreamWriter,
    WriterAction,
    save_rc,
)
from xen_save_helper.toolstack.seams import Transfer


class PostcopyTransitioned(Enum):
    """How far the hand-over to the destination got."""

    NEVER = "never"
    """It was never reached."""
    FAILED = "failed"
    """It was reached, but its last byte was certainly not written: the guest cannot run at the
    destination."""
    DONE = "done"
    """The guest may run at the destination: it must not be resumed here unless the destination says
    that it did not start it."""


@dataclass(frozen=True)
class SaveResult:
    """How a save ended.

    `rc` is `Error.OK` (0) or libxl's error code, `reason` a line for people ("" on success).
    `suspended` says whether the domain has suspended for this save, or still may: the caller hands
    it over or resumes it. If it is False and the save failed, there is nothing to resume. `why`
    is the cause of a failure.
    """

    rc: Error
    postcopy_transitioned: PostcopyTransitioned
    statistics: Statistics | None
    reason: str
    suspended: bool
    why: Why = SYSTEM
    page_server: PageServer | None = None
    """What has become of the link that was asked for."""


@dataclass(frozen=True)
class SaveParameters:
    """What to save, and how; see `domain_live_migrate`."""

    request: HelperRequest
    strategy: MemoryStrategy
    precopy: PrecopyLimits
    on_transition: Callable[[], None]
    """Records the point of no return (`rules.stream.PointOfNoReturn`). If it raises, nothing is
    promised."""
    admitted: bool = True
    """Whether the receiver reads the stream at once; if not, `Limits.admission` applies until it
    begins."""
    receiving: Word | None = None
    """Heard before the guest is asked to suspend."""


_SIMPLE_RECORDS = {
    Part.LIBXC_CONTEXT: RecordType.LIBXC_CONTEXT,
    Part.END: RecordType.END,
    Part.CHECKPOINT_END: RecordType.CHECKPOINT_END,
    Part.POSTCOPY_TRANSITION_END: RecordType.POSTCOPY_TRANSITION_END,
}
"""Records without a body."""


def has_begun(statistics: Statistics | None) -> bool:
    """Whether a stream's receiver has read more than the buffers in between can hold; False if the
    helper does not count."""
    return statistics is not None and statistics.bytes > BUFFERED


class SaveOperation(StreamOperation[WriterAction, SaveResult]):
    """A save; `cancel` may come at any time."""

    def __init__(self, ctx: Context, parameters: SaveParameters) -> None:
        self._writer = StreamWriter(device_model=True)
        super().__init__(ctx, parameters.request.domid, "save", self._writer)
        self._parameters = parameters
        self._domid = parameters.request.domid
        self._live = bool(parameters.request.xcflags & XCFlags.LIVE)
        self._helper_result: HelperResult | None = None
        self._write: Transfer | None = None
        self._fetch: asyncio.Task[None] | None = None
        self._suspension: GuestSuspension | None = None
        self._earlier_rc = 0
        self._precopy = PrecopyProgress(ctx.limits.stream_stall)
        steering = None if ctx.control is None else ctx.control.steering
        clock = asyncio.get_running_loop().time if steering is None else steering.sending_clock
        self._decisions = PrecopyDecisions(parameters.precopy, parameters.strategy, clock)
        if steering is not None:
            self._let_steer(steering)
        self._transitioned = PostcopyTransitioned.NEVER

    def _let_steer(self, steering: Steering) -> None:
        """Say what can be changed about this save."""
        request, program = self._parameters.request, self._ctx.program
        steering.live = self._live
        steering.postcopy = request.postcopy
        steering.by_link = bool(request.link)
        steering.bandwidth = request.bandwidth
        if self._ctx.engine is Engine.LIBXENGUEST:
            steering.no_bandwidth = "libxenguest has no bandwidth limit"
        elif isinstance(program, PipeHelper):
            steering.no_bandwidth = f"{program.path} has no bandwidth limit"
        if not self._live:
            steering.no_rounds = "a guest that is saved while it stands still has no precopy"
        elif not asks_for_policy(program):
            steering.no_rounds = f"{program.path} follows libxc's own precopy policy"
        else:
            steering.rounds = self._decisions.rounds

    async def _run(self) -> SaveResult:
        self._report.event("save", live=self._live, strategy=self._parameters.strategy.value)
        rc = await self._prepare()
        if not rc and self._cancelled:
            rc = Error.ABORTED
            self._report.failed("the save was cancelled", Why(Cause.ABORTED), rc=rc)
        if not rc:
            self._join.started(Task.STREAM)
            self._do(self._writer.start())
            rc = await self._completed
            await self._settle(rc)
        rules = self._suspension and self._suspension.rules
        suspended = bool(rules and rules.may_suspend)
        self._report.event(
            "save_ended",
            rc=rc,
            transitioned=self._transitioned.value,
            suspended=suspended,
            **self._report.cause(rc),
        )
        if self._fault is not None:
            raise self._fault
        reason = self._report.reason if rc else ""
        return SaveResult(
            Error(rc),
            self._transitioned,
            self._report.statistics,
            reason,
            suspended,
            self._report.why,
            self._helper_result.page_server if self._helper_result else None,
        )

    async def _prepare(self) -> int:
        """Check for what would fail in a worse way later."""
        try:
            rows = await blocking.call(self._ctx.limits.callback, self._ctx.host.domains)
        except OSError as error:
            self._report.failed(f"the host does not list its domains: {error}", why(error))
            return rc_of(error)
        row = next((row for row in rows if row.domid == self._domid), None)
        if row is None:
            self._report.failed("there is no such domain")
            return Error.DOMAIN_NOTFOUND
        # A suspended domain is at rest already; each host's suspend request deals with it.
        if row.state.value != "suspended" and (problem := why_not_suspend(row)):
            self._report.failed(problem)
            return Error.FAIL
        if self._live and row.log_dirty:
            # Two saves with one log-dirty bitmap would take pages from each other.
            self._report.failed("log-dirty mode is on already: a save is in progress, or has died")
            return Error.FAIL
        return 0

    async def _settle(self, rc: int) -> None:
        """Wait for what the save began, and undo what a killed helper could not."""
        self._abort_suspension(rc or Error.FAIL)
        await self._tasks_ended()
        result = self._helper_result
        if result is not None and not result.completed:
            await self._logdirty_off()

    async def _logdirty_off(self) -> None:
        """libxl leaves log-dirty mode on here."""
        self._report.event("logdirty_off")
        try:
            problem = await blocking.call(
                self._ctx.limits.callback, heal, self._ctx.host, self._domid
            )
        except ProcessLookupError:
            return
        except OSError as error:
            problem = f"log-dirty mode cannot be turned off: {message_of(error)}"
        if problem:
            self._report.failed(problem)

    # What the rules decide

    def _joined(self, rc: int) -> None:
        self._completed.set_result(rc)

    def _do(self, actions: tuple[WriterAction, ...]) -> None:
        for action in actions:
            match action:
                case stream.PointOfNoReturn():
                    self._promise_transition()
                case stream_write.Write(part):
                    self._start_part(part)
                case stream_write.CancelWrite():
                    self._cancel_write()
                case stream.StartHelper():
                    self._start_helper()
                case stream.PostcopyTransitionCallback(rc):
                    self._postcopy_transition_done(rc)
                case stream.Stopped(rc):
                    self._stream_stopped(rc)
                case stream_write.CheckpointCallback():
                    raise RuntimeError("a plain stream has no checkpoints")

    def _promise_transition(self) -> None:
        promise, failure = self._parameters.on_transition, "the postcopy transition cannot begin"
        rc = self._promise(promise, failure)
        if not rc:
            self._past_return()
        self._do(self._writer.promised(rc))

    # Writing

    def _start_part(self, part: Part) -> None:
        if part in stream_write.EMULATOR:
            self._fetch = self._spawn(self._write_emulator(part))
        elif part is Part.HEADER:
            self._write_bytes(part, libxl_stream.encode_header())
        else:
            self._write_bytes(part, libxl_stream.encode_record(_SIMPLE_RECORDS[part]))

    async def _write_emulator(self, part: Part) -> None:
        try:
            data = await blocking.call(self._ctx.limits.callback, self._emulator_record, part)
        except (OSError, ValueError) as error:
            self._report.failed(f"{part.value}: {error}", why(error))
            self._write_done(part, rc_of(error))
            return
        self._write_bytes(part, data)

    def _emulator_record(self, part: Part) -> bytes:
        """The record, or b"" if the domain has nothing to put into it."""
        host, qemu = self._ctx.host, EmulatorId.QEMU_UPSTREAM
        if part is Part.EMULATOR_XENSTORE_DATA:
            entries = host.emulator_xenstore_data(self._domid)
            if not entries:
                return b""
            body = libxl_stream.encode_emulator_xenstore_data(qemu, 0, entries)
            return libxl_stream.encode_record(RecordType.EMULATOR_XENSTORE_DATA, body)
        context = host.emulator_context(self._domid)
        if context is None:
            return b""
        body = libxl_stream.encode_emulator_context(qemu, 0, context)
        return libxl_stream.encode_record(RecordType.EMULATOR_CONTEXT, body)

    def _write_bytes(self, part: Part, data: bytes) -> None:
        def done(error: Exception | None) -> None:
            self._write = None
            if error is not None:
                self._report.failed(f"writing the {part.value}: {message_of(error)}", why(error))
            try:
                self._write_done(part, 0 if error is None else rc_of(error))
            except Exception as fault:
                self._faulted(fault)

        if not data:
            self._write_done(part, 0)
            return
        try:
            limit = max(self._ctx.limits.stream_stall, self._admission)
            fd = self._parameters.request.io_fd
            self._write = self._ctx.seams.stream.start_write(
                fd, data, done, limit=limit, what=part.value
            )
        except Exception as error:
            done(error)

    @property
    def _admission(self) -> float:
        """The seconds for which the receiver may leave the stream unread; 0 once it has begun."""
        if self._parameters.admitted or has_begun(self._report.statistics):
            return 0.0
        return self._ctx.limits.admission

    def _write_done(self, part: Part, rc: int) -> None:
        self._fetch = None
        self._report.event("stream_write", part=part.value, rc=rc)
        self._do(self._writer.write_done(rc))

    def _cancel_write(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            self._fetch = None
        if self._write is not None:
            self._write.cancel()
            self._write = None

    # The helper and its callbacks

    def _start_helper(self) -> None:
        self._run_helper(self._parameters.request, self._callbacks(), self._admission)

    def _callbacks(self) -> Mapping[str, Callable[..., int | None]]:
        callbacks: dict[str, Callable[..., int | None]] = {
            "suspend": self._on_suspend,
            "switch_qemu_logdirty": self._on_switch_qemu_logdirty,
            "precopy_policy": self._on_precopy_policy,
        }
        if self._parameters.request.postcopy:
            callbacks["postcopy_transition"] = self._on_postcopy_transition
        return callbacks

    def _on_precopy_policy(self, iteration: int, total_written: int, dirty_count: int) -> int:
        answer, reason = self._decisions.ask(iteration, total_written, dirty_count)
        now = asyncio.get_running_loop().time()
        if objection := self._precopy.objection(iteration, total_written, now):
            self._fail(objection, Error.FAIL, Why(Cause.PROTOCOL))
            answer = PrecopyPolicy.ABORT
        elif answer is PrecopyPolicy.ABORT:
            self._fail(f"precopy does not converge: {reason}", Error.FAIL, Why(Cause.ABORTED))
        self._precopy.answered(answer)
        if dirty_count >= 0 or answer:
            self._report.event(
                "precopy_policy",
                iteration=iteration,
                total_written=total_written,
                dirty_count=dirty_count,
                answer=answer.name,
                why=reason,
            )
        return int(answer)

    def _on_suspend(self) -> None:
        if self._suspension is not None:
            self._report.failed(
                "the helper asked for a second suspension in a plain stream", Why(Cause.PROTOCOL)
            )
            self._answer("suspend", 0)
            return
        self._suspension = GuestSuspension(self._ctx.host, self._domid, self._ctx.limits)
        self._spawn(self._suspend(self._suspension))

    def _abort_suspension(self, rc: int) -> None:
        self._give_up_word()
        if self._suspension is not None:
            self._suspension.abort(rc)

    async def _suspend(self, suspension: GuestSuspension) -> None:
        # The guest does not stand still while a helper starts there, or is refused.
        if not await self._passes(self._parameters.receiving):
            self._answer("suspend", 0)
            return
        self._report.event("suspend_request")
        self._ctx.say_progress("waiting for the guest to suspend", 0, 0)
        finished = await suspension.run()
        rc = finished.rc
        if rc:
            self._report.failed(finished.reason, finished.why, rc=rc)
        else:
            rc = await self._suspend_emulator()
        self._report.event("suspend_done", rc=rc)
        self._earlier_rc = self._earlier_rc or rc
        self._answer("suspend", 0 if rc else 1)

    async def _suspend_emulator(self) -> int:
        """Must end before libxc goes on: no dirty bitmap has what the device model writes later."""
        return await self._host_call(
            "the device model cannot be suspended",
            self._ctx.limits.callback,
            self._ctx.host.suspend_emulator,
            self._domid,
            self._live,
        )

    def _on_switch_qemu_logdirty(self, domid: int, enable: int) -> None:
        self._spawn(self._switch_qemu_logdirty(domid, bool(enable)))

    async def _switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        self._report.event("switch_qemu_logdirty", enable=enable)
        failure = "the device model's log-dirty mode"
        if domid != self._domid:
            self._report.failed(
                f"{failure}: the helper asked for that of domain {domid}", Why(Cause.PROTOCOL)
            )
            rc: int = Error.FAIL
        else:
            limit, host = self._ctx.limits.callback, self._ctx.host
            rc = await self._host_call(failure, limit, host.switch_qemu_logdirty, domid, enable)
        self._earlier_rc = rc or self._earlier_rc
        self._answer("switch_qemu_logdirty", -1 if rc else 0)

    def _postcopy_transition_done(self, rc: int) -> None:
        self._report.event("postcopy_transition_done", rc=rc)
        if rc:
            self._transitioned = PostcopyTransitioned.FAILED
            self._earlier_rc = rc
        else:
            self._transitioned = PostcopyTransitioned.DONE
        self._answer("postcopy_transition", 0 if rc else 1)

    @property
    def _is_whole(self) -> bool:
        done = self._transitioned is PostcopyTransitioned.DONE
        result = self._helper_result
        return done and result is not None and result.completed and not result.retval

    def _helper_done(self, result: HelperResult) -> None:
        self._helper_result = result
        rules = self._suspension and self._suspension.rules
        rc = 0 if result.completed else Error.FAIL
        rc = save_rc(
            rc if self._is_whole else result.rc or rc,
            result.retval,
            guest_responded=bool(rules and rules.guest_responded),
            earlier_rc=self._earlier_rc,
        )
        self._report.helper_ended(result, rc, "saving the domain", "saved")
        if rc:
            self._abort_suspension(rc)
        self._helper_stopped(rc)
