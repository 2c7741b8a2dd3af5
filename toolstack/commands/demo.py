"""The command demo: migrates a running guest between two hosts made for it, and checks it there."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.aio import blocking
from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.migrate import report
from xen_save_helper.toolstack.commands.own_timeline import own_timeline
from xen_save_helper.toolstack.commands.running import limits_of, open_trace, progress_for, run
from xen_save_helper.toolstack.context import Context, ProgressLine
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl.migrate import migrate
from xen_save_helper.toolstack.xl.migrate_options import HostDestination, MigrateOptions
from xen_save_helper.toolstack.xl.outcome import GuestResult, MigrationResult, Outcome

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import GuestReport
    from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

GUEST: Final = "demo"
VERIFY_LIMIT: Final = 300.0
"""Seconds for the guest to compare all its memory: more than 2 GiB takes on a slow machine."""

RUN_ON_LIMIT: Final = 10.0
"""Seconds for a guest to take a step."""

_VERIFIED: Final = "the guest compared every page at the destination, and runs on"

MODES: Final = {
    "stop-and-copy": (MemoryStrategy.DEFAULT, PrecopyLimits(max_rounds=0)),
    "precopy": (MemoryStrategy.DEFAULT, PrecopyLimits()),
    "postcopy": (MemoryStrategy.POSTCOPY, PrecopyLimits(max_rounds=0)),
}


@dataclass(frozen=True)
class DemoResult:
    """`verified`: the guest compared every page of its memory at the destination, all were right,
    and it ran on. `first_step_lead_seconds`: in postcopy, how long before the last page was in
    place the guest took its first step at the destination."""

    migration: MigrationResult
    verified: bool
    first_step_lead_seconds: float | None


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[Path, Path]]:
    """The directories of two new hosts. Their guests are destroyed and the directories removed with
    the context, or by the next demo if this one is killed."""
    from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host

    with ScratchDirectory("xen-toolstack-demo-", clear=destroy_all) as scratch:
        directories = scratch.path / "source", scratch.path / "destination"
        for directory in directories:
            create_host(directory)
        try:
            yield directories
        finally:
            destroy_all(scratch.path)


def destroy_all(hosts: Path) -> None:
    """Destroy all guests of the hosts whose directories are in `hosts`."""
    from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

    for directory in hosts.iterdir():
        host = SimulatedHost(directory)
        host.clear_up()
        for row in host.domains():
            host.destroy(row.domid)


async def play(
    mode: str,
    *,
    memory: int,
    workload: str,
    bandwidth: int,
    limits: Limits,
    trace: Trace,
    events: Path,
    receiver_arguments: Sequence[str],
    progress: ProgressLine,
) -> DemoResult:
    """Migrate a guest of `memory` bytes between two new hosts, as `MODES` says.

    Both sides append their trace to `events`. Returns even if the migration failed.
    """
    from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

    before = events.stat().st_size if events.is_file() else 0
    strategy, precopy = MODES[mode]
    with two_hosts() as (source, destination):
        host = SimulatedHost(source)
        domid = host.create_guest(GUEST, memory, workload)
        result = await told(
            partial(
                migrate,
                Context(host, f"sim:{source}", trace=trace, limits=limits, progress=progress),
                domid,
                HostDestination(destination, SimulatedHost(destination), receiver_arguments),
                MigrateOptions(strategy, precopy, bandwidth),
            )
        )
        if result.outcome is not Outcome.SUCCESS:
            return DemoResult(result, verified=False, first_step_lead_seconds=None)
        return await look_at(
            SimulatedHost(destination), result, postcopy_complete_at(events, before)
        )


async def look_at(
    host: SimulatedHost, result: MigrationResult, complete: float | None
) -> DemoResult:
    """Have the guest compare all its memory at the destination, and check that it runs on. If not,
    it has died of its migration, whatever the outcome of that was. `complete`: when its last page
    was in place."""
    domid = host.find(GUEST)
    problem = ""
    try:
        verified = await blocking.call(2 * VERIFY_LIMIT, host.verify, domid, VERIFY_LIMIT)
    except OSError as error:
        problem = f"the guest cannot compare its memory at the destination: {message_of(error)}"
        verified = host.report(domid)
    last = await _report_after(host, domid, _steps(verified))
    if last.crash:
        problem = f"the guest died at the destination: {last.crash}"
    elif last.memory_ok is not True:
        problem = "the guest's memory is wrong at the destination"
    elif _steps(last) <= _steps(verified):
        problem = problem or "the guest stands still at the destination"
    guest = GuestResult(
        host=result.guest.host,
        state=last.state.value,
        steps=last.steps,
        pages_checked=last.pages_checked,
        memory_ok=last.memory_ok,
    )
    lead = None
    if complete is not None and last.first_step_at is not None:
        lead = round(complete - last.first_step_at, 6)
    result = replace(result, guest=guest)
    if problem:
        result = replace(result, outcome=Outcome.GUEST_DIED, rc=Error.FAIL, reason=problem)
    return DemoResult(result, verified=not problem, first_step_lead_seconds=lead)


def _steps(report: GuestReport) -> int:
    assert report.steps is not None, "a simulated guest counts its steps"
    return report.steps


async def _report_after(host: SimulatedHost, domid: int, steps: int) -> GuestReport:
    """The guest's report once it has run beyond `steps`, or has had enough time to."""
    patience = Patience(RUN_ON_LIMIT, time.monotonic())
    while True:
        report = host.report(domid)
        if _steps(report) > steps or patience.look(time.monotonic()):
            return report
        await asyncio.sleep(0.005)


def postcopy_complete_at(events: Path, before: int) -> float | None:
    """When the receiving helper had put the last page in place, by its trace in `events` after the
    first `before` bytes, which are another run's or not a trace. None if `events` is not a file,
    and so cannot be read again."""
    if not events.is_file():
        return None
    with events.open("rb") as lines:
        lines.seek(before)
        for line in lines:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "postcopy_complete":
                return float(event["t"])
    return None


def demo(arguments: argparse.Namespace) -> int:
    """Play, and report. The trace is read to say what happened, so without --events it goes to a
    temporary file."""
    with ScratchDirectory("xen-toolstack-events-") as scratch:
        if arguments.events is None:
            arguments.events = str(scratch.path / "events")
        given = [f"--limit={setting}" for setting in arguments.limit]
        given.append(f"--events={Path(arguments.events).absolute()}")
        with own_timeline(arguments) as timeline, progress_for(arguments, "demo") as progress:
            result = run(
                play(
                    arguments.mode,
                    memory=arguments.memory,
                    workload=arguments.workload,
                    bandwidth=arguments.bandwidth,
                    limits=limits_of(arguments),
                    trace=open_trace(arguments, "controller"),
                    events=Path(arguments.events),
                    receiver_arguments=given,
                    progress=progress,
                )
            )
            drawn = timeline.draw()
    return _report(arguments, result, drawn)


def _report(
    arguments: argparse.Namespace, result: DemoResult, drawn: Sequence[tuple[str, str]] = ()
) -> int:
    migration = result.migration
    rows = [("verified", _VERIFIED)] if result.verified else []
    if result.first_step_lead_seconds is not None:
        rows.append(("first step", _lead(result.first_step_lead_seconds)))
    rows += drawn
    extra = {
        "verified": result.verified,
        "first_step_lead_seconds": result.first_step_lead_seconds,
    }
    return report(arguments, migration, rows, extra)


def _lead(seconds: float) -> str:
    if seconds > 0:
        return f"at the destination {seconds * 1000:.1f} ms before the last page arrived"
    return "only after the last page had arrived"
