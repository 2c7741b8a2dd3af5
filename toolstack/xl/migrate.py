"""The sending side of a migration: `xl migrate`."""

from __future__ import annotations

import asyncio
import errno
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.messages import Operation, XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import xl_handshake, xl_header
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage
from xen_save_helper.toolstack import standstill
from xen_save_helper.toolstack.cancellation import end_in_order, not_told, uninterrupted
from xen_save_helper.toolstack.context import OURS, Context
from xen_save_helper.toolstack.helpers.request import Statistics
from xen_save_helper.toolstack.helpers.wait_log import READY, telling_of
from xen_save_helper.toolstack.operations.domain_save import (
    SUSPEND_DEBUG,
    SUSPEND_LIVE,
    beyond_helper,
    live_migrate_parameters,
    save_domain,
)
from xen_save_helper.toolstack.operations.save_result import (
    PostcopyTransitioned,
    SaveResult,
    has_begun,
)
from xen_save_helper.toolstack.operations.settle import (
    DEAD,
    check_can_suspend,
    heal,
    resume_for_sure,
    row_of_domain,
    state_of,
)
from xen_save_helper.toolstack.rules import arguments, handshake
from xen_save_helper.toolstack.rules.cause import Failure, Failures, message_of
from xen_save_helper.toolstack.rules.handshake import INTERRUPTIBLE, Event, Sender
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl import link
from xen_save_helper.toolstack.xl.conduct import Action, run_handshake
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role
from xen_save_helper.toolstack.xl.link import HandshakeLink
from xen_save_helper.toolstack.xl.migrate_options import (
    CommandDestination,
    Destination,
    HostDestination,
    MigrateOptions,
)
from xen_save_helper.toolstack.xl.outcome import (
    GuestResult,
    MigrationResult,
    Outcome,
    PostcopyResult,
    outcome_of,
)
from xen_save_helper.toolstack.xl.recover import recover

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, GuestReport, Host


LONG_DOWNTIME = 1.0
"""Seconds of standing still that a person is told of."""
FIRST_STEP_LIMIT = 10.0
"""Seconds after its start for a guest to take its first step, and be asked about it."""


async def migrate(
    ctx: Context,
    domid: int,
    destination: Destination,
    options: MigrateOptions,
    *,
    on_end: Callable[[MigrationResult], object] = not_told,
) -> MigrationResult:
    """Migrate a domain. A cancellation aborts it in order as long as the guest is surely here
    (`handshake.INTERRUPTIBLE`), and is put off to the end of the handshake after that. Past the
    postcopy transition the first one only warns (`Context.log`): a second one gives the guest up.
    When the migration has ended, whatever it came to, the cancellation is raised; `on_end` is
    called with the result in any case, before.

    Returns in all other cases once an operation has begun. Raises TypeError and ValueError for
    arguments that cannot be; JournalError where another
    operation on the guest is under way or was left in the middle, GuestStateError for a guest that
    cannot suspend (paused, crashed, …), ProcessLookupError without such a domain.
    """
    arguments.instance("ctx", ctx, Context)
    arguments.domain_number(domid)
    arguments.instance("options", options, MigrateOptions)
    if not isinstance(destination, Destination):
        raise TypeError(
            f"destination: want a HostDestination or a CommandDestination, not {destination!r}"
        )
    return await end_in_order(_migrate(ctx, domid, destination, options), on_end)


async def _migrate(
    ctx: Context, domid: int, destination: Destination, options: MigrateOptions
) -> MigrationResult:
    """A cancellation is followed by the rules above, and is gone."""
    row = row_of_domain(ctx.host, domid)
    name = row.name
    journal = Journal.begin(
        ctx.host.state_dir,
        name,
        Role.SOURCE,
        domid=domid,
        domain_name=name,
        peer=str(destination),
        uuid=row.uuid,
    )
    with journal.alone():
        try:
            check_can_suspend(ctx.host, domid)
        except OSError:
            journal.close()
            raise
        return await _Sending(ctx, domid, name, destination, options, journal).run()


class _Sending:
    def __init__(
        self,
        ctx: Context,
        domid: int,
        name: str,
        destination: Destination,
        options: MigrateOptions,
        journal: Journal,
    ) -> None:
        self._ctx = ctx
        self._host = ctx.host
        self._domid = domid
        self._name = name
        self._destination = destination
        self._options = options
        self._journal = journal
        self._machine = handshake.sender()
        self._receiver: link.ReceiverProcess | None = None
        self._receiver_watch: standstill.ChildWatch | None = None
        self._saved: SaveResult | None = None
        self._failures = Failures()
        self._warnings: list[str] = []
        self._name_there = name
        self._words: list[str] = []
        """What the receiver said of a migration that succeeded."""
        self._left_over = False
        self._streaming = False
        self._beyond = False
        """The guest's newer state may be at the destination alone."""
        self._warned = False
        self._source_report: GuestReport | None = None
        self._report_came_at: float | None = None
        self._actions: dict[Sender, Action] = {
            Sender.READ_BANNER: self._read_banner,
            Sender.WRITE_CONFIG: self._write_config,
            Sender.READ_VERDICT: self._read_verdict,
            Sender.RUN_STREAM: self._run_stream,
            Sender.READ_READY: self._read_ready,
            Sender.RENAME_AWAY: self._rename_away,
            Sender.SAY_GO: self._say_go,
            Sender.READ_REPORT: self._read_report,
            Sender.READ_PERMISSION: lambda: self._hear(xl_handshake.PERMISSION),
            Sender.RENAME_BACK: self._rename_back,
            Sender.RESUME: self._resume,
            Sender.SETTLE: self._resume,
            Sender.RENAME_INCONSISTENT: self._rename_inconsistent,
            Sender.READ_SYNC: self._read_sync,
            Sender.LOOK_FOR_SYNC: self._look_for_sync,
            Sender.DESTROY: self._destroy,
        }

    async def run(self) -> MigrationResult:
        with standstill.telling(self._ctx) as self._stops:
            return await self._run()

    async def _run(self) -> MigrationResult:
        started = time.monotonic()
        try:
            await run_handshake(
                self._machine,
                self._actions,
                gives_up=self._gives_up,
                failed=self._failures.met,
                trace=self._ctx.trace,
            )
        except BaseException:
            # A fault of the program; the receiver is not to outlive it.
            await uninterrupted(self._end_receiver(Outcome.UNDEFINED))
            raise
        total = time.monotonic() - started
        outcome = outcome_of(self._machine.state)
        await uninterrupted(self._end_receiver(outcome))
        if outcome in {Outcome.RUNNING_AT_SOURCE, Outcome.GUEST_DIED} or (
            outcome is Outcome.SUCCESS and not self._left_over
        ):
            self._journal.close()
        result = await uninterrupted(self._result(outcome, total))
        self._ctx.trace.event("migrated", **result.as_json())
        return result

    def _gives_up(self, state: Sender) -> bool:
        if self._beyond and state is Sender.RUN_STREAM and not self._warned:
            self._warned = True
            self._ctx.warn(
                "past the postcopy transition: to stop now would lose the guest's newer state, so "
                "the migration goes on; interrupt it again to give that up"
            )
            return False
        return state in INTERRUPTIBLE

    def _transition_begins(self) -> None:
        self._journal.promise(Promise.TRANSITION)
        self._beyond = True

    def _fail(self, rc: int, reason: str, *, theirs: bool = False) -> None:
        self._failures.met(Failure(rc, reason, theirs))

    def _link(self) -> link.ReceiverProcess:
        assert self._receiver is not None, "the receiver is started before all else"
        return self._receiver

    def _talk(self) -> HandshakeLink:
        ours = self._link()
        return HandshakeLink(self._ctx, Operation.SAVE, ours.recv_fd, ours.send_fd, ours.stopped)

    async def _hear(self, message: HandshakeMessage) -> Event:
        await self._talk().hear(message)
        return Event.OK

    async def _read_banner(self) -> Event:
        self._ctx.say_progress("waiting for the destination", 0, 0)
        options = self._options
        postcopy = options.strategy is MemoryStrategy.POSTCOPY
        if problem := beyond_helper(
            self._ctx, postcopy=postcopy, bandwidth=options.bandwidth, precopy=options.precopy
        ):
            # Before anybody at the destination hears of it.
            self._fail(Error.INVAL, problem)
            return Event.FAILED
        if isinstance(self._destination, HostDestination):
            paused = ("--paused",) if self._options.paused else ()
            self._receiver = link.start_on_host(
                self._destination.directory, (*self._destination.arguments, *paused)
            )
        else:
            # As xl migrate -p has it for xl migrate-receive.
            paused = (" -p",) if self._options.paused else ()
            self._receiver = link.start_command("".join((self._destination.command, *paused)))
        self._receiver_watch = standstill.ChildWatch(
            self._receiver.process.pid,
            self._ctx.limits.stopped,
            partial(standstill.tell, self._ctx, standstill.RECEIVER),
        )
        return await self._hear(xl_handshake.BANNER)

    async def _write_config(self) -> Event:
        config = self._options.config
        if config is None:
            config = self._host.config(self._domid)
        else:
            self._name_there = str(config["c_info"]["name"])
        text = json.dumps(config).encode() + b"\0"
        header = xl_header.encode_header(text, self._optional_flags())
        await self._talk().say(xl_handshake.CONFIG, header)
        return Event.OK

    def _optional_flags(self) -> int:
        """A verdict is asked for where the receiver is certainly ours, since xl's says none: only
        ours can take a simulated guest, or do postcopy."""
        if self._options.strategy is MemoryStrategy.POSTCOPY:
            return xl_header.OPTIONAL_VERDICT | xl_header.OPTIONAL_POSTCOPY
        return 0 if self._ctx.hypervisor == XEN else xl_header.OPTIONAL_VERDICT

    async def _read_verdict(self) -> Event:
        if not self._optional_flags():
            return Event.OK
        try:
            verdict = await self._talk().hear_verdict()
        except link.LinkClosedError:
            raise
        except (link.LinkError, DecodeError) as error:
            if self._options.strategy is not MemoryStrategy.POSTCOPY:
                raise
            raise link.LinkError(
                f"the receiver said nothing of postcopy: is it xl's? ({message_of(error)})"
            ) from error
        if verdict.rc:
            rc = verdict.rc if verdict.rc in set(Error) else Error.FAIL
            self._fail(rc, f"the destination refuses the guest: {verdict.reason}")
            return Event.FAILED
        return Event.OK

    async def _run_stream(self) -> Event:
        self._streaming = True
        try:
            saved = self._saved = await save_domain(
                self._ctx,
                live_migrate_parameters(
                    self._ctx,
                    self._domid,
                    self._link().send_fd,
                    SUSPEND_LIVE | (SUSPEND_DEBUG if self._options.debug else 0),
                    self._link().recv_fd,
                    self._options.strategy,
                    precopy=self._options.precopy,
                    bandwidth=self._options.bandwidth,
                    on_transition=self._transition_begins,
                    admitted=self._admitted,
                ),
            )
        except Exception as error:
            # Whatever it is: a guest that may run at the destination is never resumed here.
            if not self._beyond:
                raise
            self._fail(Error.FAIL, message_of(error))
            return Event.FAILED_AFTER_TRANSITION
        done = saved.postcopy_transitioned is PostcopyTransitioned.DONE
        if not saved.rc:
            return Event.TRANSITIONED if done else Event.OK
        reason = f"the other side closed the link: {saved.reason}" if saved.theirs else saved.reason
        self._fail(saved.rc, reason, theirs=saved.theirs)
        if done:
            return Event.FAILED_AFTER_TRANSITION
        if state_of(self._host, self._domid) in {None, *DEAD}:
            return Event.GUEST_DIED
        if saved.rc == Error.GUEST_TIMEDOUT:
            return Event.NEVER_SUSPENDED
        return Event.FAILED

    @property
    def _admitted(self) -> bool:
        """The receiver has said that it begins with the stream at once."""
        return bool(self._optional_flags())

    async def _read_ready(self) -> Event:
        self._ctx.say_progress("waiting for the destination to be ready", 0, 0)
        limits, saved = self._ctx.limits, self._saved
        limit = limits.ready
        if not self._admitted and not has_begun(saved.statistics if saved else None):
            # All of the stream may lie in buffers.
            limit += limits.admission
        with telling_of(READY, self._ctx.warn):
            await self._talk().hear(xl_handshake.READY, limit)
        return Event.OK

    async def _rename_away(self) -> Event:
        self._host.rename(self._domid, self._name + handshake.MIGRATED_AWAY)
        self._journal.promise(Promise.GO)
        return Event.OK

    async def _say_go(self) -> Event:
        await self._talk().say(xl_handshake.GO)
        return Event.OK

    async def _read_report(self) -> Event:
        code = await self._talk().hear_code(xl_handshake.REPORT)
        if code:
            reason = f"the destination could not start the guest (status {code})"
            self._fail(Error.FAIL, reason, theirs=True)
            return Event.NOT_STARTED
        self._report_came_at = time.monotonic()
        return Event.OK

    async def _read_sync(self) -> Event:
        await self._hear(xl_handshake.SYNC)
        self._report_came_at = time.monotonic()
        return Event.OK

    async def _look_for_sync(self) -> Event:
        """The receiver, which hears no more from us, says it last or not at all."""
        ours = self._link()
        ours.end_sending()
        said = await link.read_to_end(ours.recv_fd, self._ctx.limits.handshake)
        if not said.endswith(xl_handshake.SYNC.octets):
            return Event.FAILED
        self._report_came_at = time.monotonic()
        return Event.OK

    async def _rename_back(self) -> Event:
        self._host.rename(self._domid, self._name)
        return Event.OK

    async def _resume(self) -> Event:
        """Bring the guest to run here; a journal that cannot be written does not keep it from
        that, since nothing is promised any more."""
        try:
            self._journal.promise(Promise.BEGUN)
        except OSError as error:
            self._fail(Error.FAIL, f"journal: {message_of(error)}")
        if state_of(self._host, self._domid) in {None, *DEAD}:
            return Event.GUEST_DIED
        if problem := heal(self._host, self._domid):
            self._warnings.append(problem)
        may_suspend = self._saved is not None and self._saved.suspended
        watch = self._ctx.limits.suspend if may_suspend else 0.0
        state = resume_for_sure(self._host, self._domid, watch=watch)
        return Event.GUEST_DIED if state in DEAD else Event.OK

    async def _rename_inconsistent(self) -> Event:
        self._host.rename(self._domid, self._name + handshake.POSTCOPY_INCONSISTENT)
        return Event.OK

    async def _destroy(self) -> Event:
        self._left_over = True
        self._journal.promise(Promise.DONE)
        self._source_report = self._report(self._host, self._domid)
        self._host.destroy(self._domid)
        self._left_over = False
        return Event.OK

    def _report(self, host: Host, domid: int) -> GuestReport | None:
        """What a guest says of itself; None, and a line in the trace, where it does not."""
        try:
            return host.report(domid)
        except OSError as error:
            self._ctx.trace.event("no report", domid=domid, reason=message_of(error))
            return None

    async def _end_receiver(self, outcome: Outcome) -> None:
        """Wait for the receiver's end; on our own machine, end what a killed one has left."""
        if self._receiver is None:
            return
        try:
            status = await self._receiver.end(self._ctx.limits.abort)
            self._ctx.trace.event("receiver ended", status=status)
            if outcome is Outcome.SUCCESS:
                self._words = self._receiver.words()
            elif not self._receiver.ended_by_us:
                self._receiver_ended(self._receiver, status)
        finally:
            self._receiver.dispose()
            if self._receiver_watch is not None:
                self._receiver_watch.cancel()
        if status < 0 and isinstance(self._destination, HostDestination):
            self._recover_destination(self._destination.host)

    def _receiver_ended(self, receiver: link.ReceiverProcess, status: int) -> None:
        """What its end says of its failure. Ours says nothing where it knows only that we have
        gone, and nothing beyond its verdict where it has told one."""
        cause = self._failures.cause
        if status < 0:
            self._fail(Error.FAIL, f"the receiver was killed by signal {-status}")
        elif status and (words := receiver.last_words()):
            self._fail(Error.FAIL, f"destination: {words}")
        elif status and isinstance(self._destination, CommandDestination):
            before = f"{cause.reason}; " if cause is not None and cause.theirs else ""
            text = f"{before}{self._destination} ended with exit status {status}"
            self._fail(Error.FAIL, text)

    def _recover_destination(self, host: Host) -> None:
        try:
            for recovery in recover(host, self._name_there, role=Role.DESTINATION):
                self._ctx.trace.event("recovered", way=recovery.way.value, text=recovery.text)
                if not recovery.done:
                    self._warnings.append(f"destination: {recovery.text}")
        except OSError as error:
            there = self._name_there
            self._warnings.append(f"destination: {message_of(error)}; run `recover {there}` there")

    async def _result(self, outcome: Outcome, total: float) -> MigrationResult:
        saved = self._saved
        statistics = saved.statistics if saved else None
        if not self._streaming:
            statistics = Statistics(0, 0, 0, 0, 0)
        there = None
        warnings = self._warnings
        if outcome is Outcome.SUCCESS:
            guest, there = await self._guest_there()
            if self._left_over:
                warnings.append(
                    f"what is left of the guest here was not destroyed: `recover {self._name}` "
                    "does that"
                )
            warnings += [f"destination: {line}" for line in self._words]
        else:
            guest = self._guest_here()
        postcopy = None
        if saved and saved.postcopy_transitioned is PostcopyTransitioned.DONE:
            postcopy = PostcopyResult(
                pages=statistics.postcopy_pages if statistics else None,
                faults=statistics.postcopy_faults if statistics else None,
                fault_p50_us=there.fault_p50_us if there else None,
                fault_p99_us=there.fault_p99_us if there else None,
            )
        never = PostcopyTransitioned.NEVER
        downtime = self._downtime(there) if outcome is Outcome.SUCCESS else None
        if downtime is not None and downtime > LONG_DOWNTIME:
            warnings.append(
                f"the guest stood still for {downtime:.1f} s; --max-downtime, --postcopy or more "
                "bandwidth make that shorter"
            )
        return MigrationResult(
            outcome=outcome,
            rc=Error(0 if outcome is Outcome.SUCCESS else self._failures.rc or Error.FAIL),
            mode=self._options.mode,
            postcopy_transitioned=(saved.postcopy_transitioned if saved else never).value,
            rounds=statistics.rounds if statistics else None,
            pages_sent=statistics.pages + statistics.postcopy_pages if statistics else None,
            bytes_sent=statistics.bytes if statistics else None,
            total_seconds=round(total, 6),
            downtime_seconds=downtime,
            stopped_seconds=round(self._stops.seconds, 3),
            postcopy=postcopy,
            guest=guest,
            reason=self._reason(),
            warnings=tuple(warnings),
        )

    def _reason(self) -> str:
        """The cause's; what came of it is for those who want to know all."""
        for consequence in self._failures.consequences:
            self._ctx.trace.event("consequence", reason=consequence)
            self._ctx.say(XentoollogLevel.NOTICE, OURS, f"after that: {consequence}")
        return self._failures.reason

    def _downtime(self, there: GuestReport | None) -> float | None:
        left = self._source_report.suspended_at if self._source_report else None
        arrived = there.first_step_at if there else self._report_came_at
        if left is None or arrived is None or self._options.paused:
            return None
        return round(arrived - left, 6)

    def _guest_here(self) -> GuestResult:
        report = self._report(self._host, self._domid)
        try:
            state = state_of(self._host, self._domid)
        except OSError as error:
            self._ctx.trace.event("no state", domid=self._domid, reason=message_of(error))
            state = None
        return _guest_result(_place(self._ctx), state, report)

    async def _guest_there(self) -> tuple[GuestResult, GuestReport | None]:
        """The guest at the destination, once it has taken its first step."""
        if not isinstance(self._destination, HostDestination):
            return _guest_result(None, None, None), None
        host, place = self._destination.host, str(self._destination)
        patience = Patience(FIRST_STEP_LIMIT, time.monotonic())
        while True:
            try:
                row = self._find_there(host)
                report, state = self._report(host, row.domid), row.state.value
            except OSError as error:
                # It ran, by the destination's word; others may have moved it on since.
                self._ctx.trace.event("no report", reason=message_of(error))
                return _guest_result(place, None, None), None
            stepped = report is not None and report.first_step_at is not None
            if stepped or self._options.paused or patience.look(time.monotonic()):
                return _guest_result(place, state, report), report
            await asyncio.sleep(0.01)

    def _find_there(self, host: Host) -> DomainSummary:
        """The guest at the destination: it keeps the name of a copy where its own was taken."""
        own_uuid = self._options.config is None
        for name in (self._name_there + handshake.INCOMING, self._name_there):
            for row in host.domains():
                if row.name == name and (self._journal.entry.may_be(row.uuid) or not own_uuid):
                    return row
        raise ProcessLookupError(errno.ESRCH, f"there is no guest {self._name!r}")


def _place(ctx: Context) -> str:
    """A host as people name it: a simulated one's directory, the name of a machine."""
    directory = ctx.hypervisor.removeprefix("sim:")
    return platform.node() if directory == ctx.hypervisor else directory


def _guest_result(place: str | None, state: str | None, report: GuestReport | None) -> GuestResult:
    return GuestResult(
        host=place,
        state=state,
        steps=report.steps if report else None,
        pages_checked=report.pages_checked if report else None,
        memory_ok=report.memory_ok if report else None,
    )
