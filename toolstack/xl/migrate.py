"""The sending side of a migration: `xl migrate`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from xen_save_helper.ipc_schema.causes import Cause, Why, errno_of, why
from xen_save_helper.ipc_schema.control import Role as ControlRole
from xen_save_helper.ipc_schema.errors import DecodeError, Error
from xen_save_helper.ipc_schema.streams import xl_handshake, xl_header
from xen_save_helper.toolstack import standstill
from xen_save_helper.toolstack.cancellation import absorb, end_in_order, not_told, uninterrupted
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers import page_server
from xen_save_helper.toolstack.helpers.request import PageServer
from xen_save_helper.toolstack.helpers.wait_log import READY, REPORT, telling_of
from xen_save_helper.toolstack.operations.domain_save import (
    SUSPEND_DEBUG,
    SUSPEND_LIVE,
    beyond_helper,
    live_migrate_parameters,
    save_domain,
)
from xen_save_helper.toolstack.operations.save import (
    PostcopyTransitioned,
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
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import SENDER_INTERRUPTIBLE, Event, Sender
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl import left_pages, link
from xen_save_helper.toolstack.xl.conduct import Action, HandshakeSide
from xen_save_helper.toolstack.xl.controlled import controlled
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role
from xen_save_helper.toolstack.xl.migrate_options import (
    Destination,
    HostDestination,
    MigrateOptions,
)
from xen_save_helper.toolstack.xl.migrate_result import Course, Migration, ResultMaker
from xen_save_helper.toolstack.xl.outcome import MigrationResult, Outcome, outcome_of
from xen_save_helper.toolstack.xl.receiver_process import RunningReceiver
from xen_save_helper.toolstack.xl.recover import recover_copy

_BY_DESTINATION: Final = Why(Cause.DESTINATION)


async def migrate(
    ctx: Context,
    domid: int,
    destination: Destination,
    options: MigrateOptions,
    *,
    on_end: Callable[[MigrationResult], object] = not_told,
) -> MigrationResult:
    """Migrate a domain.

    A cancellation aborts the migration in order while the guest is certainly here
    (`handshake.SENDER_INTERRUPTIBLE`), and is put off to the end of the handshake after that. Past
    the postcopy transition the first one only warns (`Context.log`), and a second one gives the
    guest up. However the migration ends, `on_end` is called with the result, then the cancellation
    is raised.

    Otherwise returns once the operation has begun. Before that it raises TypeError and ValueError
    for invalid arguments, ProcessLookupError if there is no such domain, JournalError if another
    operation on the guest is under way or was left in the middle, and GuestStateError for a guest
    that cannot suspend (paused, crashed, …).
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
    """Migrate without `end_in_order`: a cancellation only shows in the result."""
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
        ctx = replace(ctx, trace=ctx.trace.about(name))
        return await _Sending(Migration(ctx, domid, name, destination, options, journal)).run()


class _Sending(HandshakeSide[Sender]):
    past_return = "past the postcopy transition: to stop now would lose the guest's newer state"
    streaming = Sender.RUN_STREAM
    interruptible = SENDER_INTERRUPTIBLE

    def __init__(self, migration: Migration) -> None:
        super().__init__(migration.ctx, handshake.sender())
        self._migration = migration
        self._course = Course()
        self._host = migration.ctx.host
        self._domid = migration.domid
        self._destination = migration.destination
        self._options = migration.options
        self._journal = migration.journal
        self._receiver: RunningReceiver | None = None
        self._receiver_ended = False

    @property
    def _actions(self) -> dict[Sender, Action]:
        return {
            Sender.READ_BANNER: self._read_banner,
            Sender.WRITE_CONFIG: self._write_config,
            Sender.READ_VERDICT: self._read_verdict,
            Sender.RUN_STREAM: self._run_stream,
            Sender.READ_READY: self._read_ready,
            Sender.RENAME_AWAY: self._rename_away,
            Sender.SAY_GO: lambda: self._say(xl_handshake.GO),
            Sender.READ_REPORT: self._read_report,
            Sender.SERVE_PAGES: self._serve_pages,
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
        with controlled(
            self._ctx,
            ControlRole.MIGRATE,
            self._migration.name,
            self._domid,
            too_late=self._why_too_late,
            step=lambda: str(self._machine.state.value),
        ) as self._ctx:
            with standstill.telling(self._ctx) as self._stops:
                result = await self._run()
            if self._ctx.control is not None and result.outcome is not Outcome.SUCCESS:
                self._ctx.control.ended = result.reason or result.outcome.value
            return result

    async def _run(self) -> MigrationResult:
        started = time.monotonic()
        self._ctx.trace.event("migrate", domid=self._domid, to=str(self._destination))
        try:
            await self._run_handshake()
        except BaseException:
            # A bug of ours; the receiver must not outlive us.
            await uninterrupted(self._end_receiver(Outcome.UNDEFINED))
            raise
        total = time.monotonic() - started
        outcome = outcome_of(self._machine.state)
        await uninterrupted(self._end_receiver(outcome))
        if outcome in {Outcome.RUNNING_AT_SOURCE, Outcome.GUEST_DIED} or (
            outcome is Outcome.SUCCESS and not self._course.left_over
        ):
            self._journal.close()
        result = await uninterrupted(
            ResultMaker(self._migration, self._course).result(
                outcome,
                rc=self._failures.rc or Error.FAIL,
                reason=self._reason(),
                total=total,
                stopped=self._stops.seconds,
            )
        )
        self._ctx.trace.event("migrated", **result.as_json(), **self._cause)
        return result

    def _transition_begins(self) -> None:
        self._journal.promise(Promise.TRANSITION)
        self._beyond = True

    @property
    def _there(self) -> RunningReceiver:
        assert self._receiver is not None, "the receiver is started before all else"
        return self._receiver

    @property
    def _link(self) -> link.HandshakeLink:
        return self._there.link

    async def _read_banner(self) -> Event:
        self._ctx.say_progress("waiting for the destination", 0, 0)
        options = self._options
        postcopy = options.strategy is MemoryStrategy.POSTCOPY
        if problem := beyond_helper(
            self._ctx,
            postcopy=postcopy,
            bandwidth=options.bandwidth,
            sparse=options.sparse,
            precopy=options.precopy,
        ):
            # Before the destination is asked.
            self._fail(Error.INVAL, problem)
            return Event.FAILED
        self._receiver = RunningReceiver(self._ctx, self._destination, paused=options.paused)
        return await self._hear(xl_handshake.BANNER)

    async def _write_config(self) -> Event:
        config = self._options.config
        if config is None:
            config = await self._aside(self._host.config, self._domid)
        text = json.dumps(config).encode() + b"\0"
        header = xl_header.encode_header(text, self._flags)
        await self._link.say(xl_handshake.CONFIG, header)
        return Event.OK

    @property
    def _flags(self) -> int:
        return self._options.optional_flags(self._ctx.hypervisor)

    @property
    def _admitted(self) -> bool:
        """Whether the receiver says beforehand that it will read the stream at once."""
        return bool(self._flags & xl_header.OPTIONAL_VERDICT)

    @property
    def _hears_receiving(self) -> bool:
        return bool(self._flags & xl_header.OPTIONAL_RECEIVING)

    async def _read_verdict(self) -> Event:
        if not self._admitted:
            return Event.OK
        try:
            verdict = await self._link.hear_verdict()
        except (link.LinkError, DecodeError) as error:
            gone = why(error).cause is Cause.PEER
            asked = self._options.asked_for
            if gone or not asked:
                raise
            raise link.LinkError(
                errno_of(error),
                f"the receiver did not say whether it can do {asked}; xl's cannot "
                f"({message_of(error)})",
            ) from error
        if verdict.rc:
            # ABORTED would say that our own caller gave up.
            rc = verdict.rc if verdict.rc in set(Error) - {Error.ABORTED} else Error.FAIL
            reason = f"the destination refuses the guest: {verdict.reason}"
            self._fail(rc, reason, _BY_DESTINATION)
            return Event.FAILED
        return Event.OK

    async def _run_stream(self) -> Event:
        self._course.streaming = True
        try:
            saved = self._course.saved = await save_domain(
                self._ctx,
                live_migrate_parameters(
                    self._ctx,
                    self._domid,
                    self._there.process.send_fd,
                    SUSPEND_LIVE | (SUSPEND_DEBUG if self._options.debug else 0),
                    self._there.process.recv_fd,
                    MemoryStrategy.DEFAULT if self._options.link else self._options.strategy,
                    precopy=self._options.precopy,
                    bandwidth=self._options.bandwidth,
                    sparse=self._options.sparse,
                    link=self._options.link,
                    on_transition=self._transition_begins,
                    admitted=self._admitted,
                    receiving=self._hear_receiving if self._hears_receiving else None,
                ),
            )
        except Exception as error:
            # Whatever the error: a guest that may run at the destination is never resumed here.
            if not self._beyond:
                raise
            self._fail(Error.FAIL, message_of(error), why(error))
            return Event.FAILED_AFTER_TRANSITION
        done = saved.postcopy_transitioned is PostcopyTransitioned.DONE
        if saved.page_server is not None and saved.page_server.refusal:
            self._course.warnings.append(f"no postcopy: {saved.page_server.refusal}")
        if not saved.rc:
            return Event.TRANSITIONED if done else Event.OK
        gone = "the other side closed the link: " if saved.why.cause is Cause.PEER else ""
        self._fail(saved.rc, gone + saved.reason, saved.why)
        if done:
            return Event.FAILED_AFTER_TRANSITION
        if state_of(self._host, self._domid) in {None, *DEAD}:
            return Event.GUEST_DIED
        if saved.rc == Error.GUEST_TIMEDOUT:
            return Event.NEVER_SUSPENDED
        return Event.FAILED

    async def _hear_receiving(self) -> None:
        await self._link.hear(xl_handshake.RECEIVING)

    async def _read_ready(self) -> Event:
        self._ctx.say_progress("waiting for the destination to be ready", 0, 0)
        limits, saved = self._ctx.limits, self._course.saved
        limit = limits.ready
        if not self._admitted and not has_begun(saved.statistics if saved else None):
            # The whole stream may still lie in buffers.
            limit += limits.admission
        with telling_of(READY, self._ctx.warn):
            await self._link.hear(xl_handshake.READY, limit)
        server = self._page_server
        if server and (why_lost := left_pages.why_lost(self._host.control_dir, server.server)):
            # While the guest has not run there.
            self._fail(Error.FAIL, f"its last pages cannot be sent: {why_lost}")
            return Event.FAILED
        return Event.OK

    async def _rename_away(self) -> Event:
        await self._rename(self._migration.name + handshake.MIGRATED_AWAY)
        self._journal.promise(Promise.GO)
        return Event.OK

    async def _read_report(self) -> Event:
        with telling_of(REPORT, self._ctx.warn):
            code = await self._link.hear_code(xl_handshake.REPORT, self._ctx.limits.ready)
        if code:
            reason = f"the destination could not start the guest (status {code})"
            self._fail(Error.FAIL, reason, Why(Cause.PEER))
            return Event.NOT_STARTED
        self._course.report_came_at = time.monotonic()
        return Event.OK if self._page_server is None else Event.PAGES_LEFT

    @property
    def _page_server(self) -> PageServer | None:
        """The one that has the guest's last pages; None if all went over the stream."""
        saved = self._course.saved
        server = saved.page_server if saved else None
        return server if server is not None and server.server else None

    async def _serve_pages(self) -> Event:
        """Wait until the page server has done its work. It goes on without us, and so does the
        guest."""
        server = self._page_server
        assert server is not None, "it was left pages"
        self._course.left_over = True
        try:
            self._journal.promise(Promise.PAGES)
        except OSError as error:
            # With what it has promised before, `recover` asks a person.
            self._course.warnings.append(f"journal: {message_of(error)}")
        interrupted: list[bool] = []
        await absorb(self._end_receiver(Outcome.SUCCESS), lambda: interrupted.append(True))
        if interrupted:
            return Event.NOT_AWAITED
        try:
            self._course.pages_sent = await left_pages.all_sent(
                self._host.control_dir, server.server, self._ctx.say_progress
            )
        except asyncio.CancelledError:
            return Event.NOT_AWAITED
        except left_pages.PagesLostError as error:
            # Whatever becomes of what the page server has left behind.
            self._journal.promise(Promise.TRANSITION)
            self._fail(Error.FAIL, f"the destination lacks pages: {error}", _BY_DESTINATION)
            return Event.FAILED
        except (OSError, ValueError) as error:
            self._course.warnings.append(
                f"the page server {server.server} cannot be asked: {message_of(error)}"
            )
            return Event.NOT_AWAITED
        return Event.OK

    async def _read_sync(self) -> Event:
        with telling_of(REPORT, self._ctx.warn):
            await self._link.hear(xl_handshake.SYNC, self._ctx.limits.ready)
        self._course.report_came_at = time.monotonic()
        return Event.OK

    async def _look_for_sync(self) -> Event:
        """Look for SYNC at the end of what the receiver sends, once it hears no more from us."""
        ours = self._there.process
        ours.end_sending()
        said = await link.read_to_end(ours.recv_fd, self._ctx.limits.handshake)
        if not said.endswith(xl_handshake.SYNC.data):
            return Event.FAILED
        self._course.report_came_at = time.monotonic()
        return Event.OK

    async def _rename_back(self) -> Event:
        await self._rename(self._migration.name)
        return Event.OK

    async def _resume(self) -> Event:
        """Let the guest run here, even if the journal cannot be written: nothing is promised any
        more."""
        try:
            self._journal.promise(Promise.BEGUN)
        except OSError as error:
            self._fail(Error.FAIL, f"journal: {message_of(error)}", why(error))
        if state_of(self._host, self._domid) in {None, *DEAD}:
            return Event.GUEST_DIED
        # Its pages are of no use to anybody else.
        page_server.forget(self._host.control_dir, self._domid)
        if problem := await self._aside(heal, self._host, self._domid):
            self._course.warnings.append(problem)
        may_suspend = self._course.saved is not None and self._course.saved.suspended
        watch = self._ctx.limits.suspend if may_suspend else 0.0
        state = await self._aside(resume_for_sure, self._host, self._domid, watch=watch)
        return Event.GUEST_DIED if state in DEAD else Event.OK

    async def _rename_inconsistent(self) -> Event:
        await self._rename(self._migration.name + handshake.POSTCOPY_INCONSISTENT)
        return Event.OK

    async def _rename(self, name: str) -> None:
        await self._aside(self._host.rename, self._domid, name)

    async def _destroy(self) -> Event:
        self._course.left_over = True
        self._journal.promise(Promise.DONE)
        self._course.source_report = self._migration.report(self._host, self._domid)
        with contextlib.suppress(ProcessLookupError):  # somebody else has destroyed it
            await self._aside(self._host.destroy, self._domid)
        self._course.left_over = False
        return Event.OK

    async def _end_receiver(self, outcome: Outcome) -> None:
        """Wait for the receiver to end; on this machine, finish what a killed one left."""
        if self._receiver is None or self._receiver_ended:
            return
        self._receiver_ended = True
        end = await self._receiver.end()
        self._ctx.trace.event("receiver_exited", status=end.status)
        if outcome is Outcome.SUCCESS:
            # Another program's lines need not be about trouble.
            a_host = isinstance(self._destination, HostDestination)
            self._course.receiver_lines = [*(end.lines if a_host else end.own)]
        elif reason := end.failure(self._destination, self._failures.cause):
            self._fail(Error.FAIL, reason, _BY_DESTINATION)
        if end.status < 0 and isinstance(self._destination, HostDestination):
            self._course.warnings += recover_copy(
                self._destination.host, self._migration.name_there, self._ctx.trace
            )
