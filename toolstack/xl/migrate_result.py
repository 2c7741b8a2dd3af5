"""Makes a `MigrationResult` from what the sender has seen and what the guest reports."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import platform
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import Statistics
from xen_save_helper.toolstack.operations.save import PostcopyTransitioned, SaveResult
from xen_save_helper.toolstack.operations.settle import state_of
from xen_save_helper.toolstack.rules import handshake
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.xl.journal import Journal
from xen_save_helper.toolstack.xl.migrate_options import (
    Destination,
    HostDestination,
    MigrateOptions,
)
from xen_save_helper.toolstack.xl.outcome import (
    GuestResult,
    MigrationResult,
    Outcome,
    PostcopyResult,
)

if TYPE_CHECKING:
    from xen_save_helper.ipc_schema.control import PostcopyStatus
    from xen_save_helper.toolstack.hosts.interface import GuestReport, Host

LONG_DOWNTIME = 1.0
"""Seconds of downtime above which there is a warning."""
FIRST_STEP_LIMIT = 10.0
"""Seconds to wait for the guest's first step at the destination."""


@dataclass(frozen=True)
class Migration:
    """The guest to migrate, its destination and the options; `name` is its name here."""

    ctx: Context
    domid: int
    name: str
    destination: Destination
    options: MigrateOptions
    journal: Journal

    @property
    def name_there(self) -> str:
        """The guest's name at the destination."""
        config = self.options.config
        return self.name if config is None else str(config["c_info"]["name"])

    def report(self, host: Host, domid: int) -> GuestReport | None:
        """A guest's report of itself; None, and an event in the trace, if there is none."""
        try:
            return host.report(domid)
        except OSError as error:
            self.ctx.trace.event("no_report", domid=domid, reason=message_of(error))
            return None


@dataclass
class Course:
    """What the sender has seen of a migration so far."""

    saved: SaveResult | None = None
    streaming: bool = False
    """Whether the stream has begun."""
    source_report: GuestReport | None = None
    """The guest's last report here, before it was destroyed."""
    pages_sent: PostcopyStatus | None = None
    """The page server's last status, once it has sent the last pages; None if it was too fast."""
    left_over: bool = False
    """Whether the guest runs there, but was not destroyed here."""
    report_came_at: float | None = None
    """When the destination reported that the guest runs."""
    receiver_lines: list[str] = field(default_factory=list)
    """What the receiver printed about a migration that succeeded."""
    warnings: list[str] = field(default_factory=list)


class ResultMaker:
    """Makes the result, asking the guest wherever it is."""

    def __init__(self, migration: Migration, course: Course) -> None:
        self._migration = migration
        self._course = course
        self._ctx = migration.ctx

    async def result(
        self, outcome: Outcome, *, rc: int, reason: str, total: float, stopped: float
    ) -> MigrationResult:
        """`total` and `stopped` in seconds."""
        course = self._course
        saved = course.saved
        statistics = saved.statistics if saved else None
        if not course.streaming:
            statistics = Statistics(0, 0, 0, 0, 0)
        there = None
        warnings = course.warnings
        if outcome is Outcome.SUCCESS:
            guest, there = await self._guest_there()
            if course.left_over:
                warnings.append(
                    "what is left of the guest here was not destroyed: "
                    f"`recover {self._migration.name}` does that"
                )
            warnings += [f"destination: {line}" for line in course.receiver_lines]
        else:
            guest = self._guest_here()
        postcopy = None
        if saved and saved.page_server is not None and saved.page_server.server:
            faults = None if course.pages_sent is None else course.pages_sent.faults
            postcopy = _postcopy_result(saved.page_server.pages, faults, there)
        if saved and saved.postcopy_transitioned is PostcopyTransitioned.DONE:
            postcopy = _postcopy_result(
                statistics.postcopy_pages if statistics else None,
                statistics.postcopy_faults if statistics else None,
                there,
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
            rc=Error(0 if outcome is Outcome.SUCCESS else rc),
            mode=self._migration.options.mode,
            postcopy_transitioned=(saved.postcopy_transitioned if saved else never).value,
            rounds=statistics.rounds if statistics else None,
            pages_sent=statistics.pages + statistics.postcopy_pages if statistics else None,
            bytes_sent=statistics.bytes if statistics else None,
            total_seconds=round(total, 6),
            downtime_seconds=downtime,
            stopped_seconds=round(stopped, 3),
            postcopy=postcopy,
            guest=guest,
            reason=reason,
            warnings=tuple(warnings),
        )

    def _downtime(self, there: GuestReport | None) -> float | None:
        left = self._course.source_report.suspended_at if self._course.source_report else None
        saved = self._course.saved
        if there is None and saved and saved.postcopy_transitioned is PostcopyTransitioned.DONE:
            # The destination reports the last page, not the first step.
            return None
        arrived = there.first_step_at if there else self._course.report_came_at
        if left is None or arrived is None or self._migration.options.paused:
            return None
        return round(arrived - left, 6)

    def _guest_here(self) -> GuestResult:
        report = self._migration.report(self._ctx.host, self._migration.domid)
        try:
            state = state_of(self._ctx.host, self._migration.domid)
        except OSError as error:
            self._ctx.trace.event("no_state", domid=self._migration.domid, reason=message_of(error))
            state = None
        return _guest_result(_place(self._ctx), state, report)

    async def _guest_there(self) -> tuple[GuestResult, GuestReport | None]:
        """The guest at the destination, once it has taken its first step."""
        if not isinstance(self._migration.destination, HostDestination):
            return _guest_result(None, None, None), None
        host, place = self._migration.destination.host, str(self._migration.destination)
        patience = Patience(FIRST_STEP_LIMIT, time.monotonic())
        domid: int | None = None
        while True:
            try:
                if domid is None:
                    domid = self._find_there(host)
                state = host.summary(domid).state.value
                report = self._migration.report(host, domid)
            except OSError as error:
                # It ran, says the destination; others may have moved it on since.
                self._ctx.trace.event("no_report", reason=message_of(error))
                return _guest_result(place, None, None), None
            stepped = report is not None and report.first_step_at is not None
            if stepped or self._migration.options.paused or patience.look(time.monotonic()):
                return _guest_result(place, state, report), report
            await asyncio.sleep(0.01)

    def _find_there(self, host: Host) -> int:
        """The guest's domid at the destination; it is still called a copy if its own name was
        taken."""
        any_uuid = self._migration.options.config is not None
        entry = self._migration.journal.entry
        for name in (self._migration.name_there + handshake.INCOMING, self._migration.name_there):
            with contextlib.suppress(ProcessLookupError):
                domid = host.find(name)
                if any_uuid or entry.may_be(host.summary(domid).uuid):
                    return domid
        raise ProcessLookupError(errno.ESRCH, f"there is no guest {self._migration.name!r}")


def _place(ctx: Context) -> str:
    """A host's name for people: a simulated one's directory, or the name of the machine."""
    directory = ctx.hypervisor.removeprefix("sim:")
    return platform.node() if directory == ctx.hypervisor else directory


def _postcopy_result(
    pages: int | None, faults: int | None, there: GuestReport | None
) -> PostcopyResult:
    return PostcopyResult(
        pages=pages,
        faults=faults,
        fault_p50_us=there.fault_p50_us if there else None,
        fault_p99_us=there.fault_p99_us if there else None,
    )


def _guest_result(place: str | None, state: str | None, report: GuestReport | None) -> GuestResult:
    return GuestResult(
        host=place,
        state=state,
        steps=report.steps if report else None,
        pages_checked=report.pages_checked if report else None,
        memory_ok=report.memory_ok if report else None,
    )
