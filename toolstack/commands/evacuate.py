"""The command evacuate."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.listen import parse_listen
from xen_save_helper.toolstack.aio import descriptors
from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    complain,
    guest_of,
    is_domid,
    show,
)
from xen_save_helper.toolstack.commands.evacuation_view import Lines, View
from xen_save_helper.toolstack.commands.migrate import destination_of, options_of
from xen_save_helper.toolstack.commands.running import can_show_progress, context_of, run
from xen_save_helper.toolstack.evacuation import record
from xen_save_helper.toolstack.evacuation.outcome import EvacuationResult, Fate, GuestEnd
from xen_save_helper.toolstack.evacuation.plan import Plan, make_plan
from xen_save_helper.toolstack.evacuation.run import EvacuationOptions
from xen_save_helper.toolstack.evacuation.run import evacuate as evacuate_guests
from xen_save_helper.toolstack.evacuation.steering import Bandwidths
from xen_save_helper.toolstack.evacuation.survey import (
    is_same_host,
    look_at_destination,
    look_at_guests,
)
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl.migrate_options import (
    CommandDestination,
    Destination,
    MigrateOptions,
)
from xen_save_helper.toolstack.xl.outcome import ExitCode

if TYPE_CHECKING:
    from xen_save_helper.toolstack.context import Context
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

_AT_ONCE: Final = 1
"""Guests at once at one Xen host: xl holds its lock while a guest comes in, and a receiver of ours
may use xl."""
_DESCRIPTORS: Final = 32
"""Descriptors for each migration under way, at most."""


def evacuate(arguments: argparse.Namespace) -> int:
    migration = options_of(arguments)
    if arguments.jobs > 1 and migration.link and parse_listen(migration.link).port:
        raise UsageError("--link with a PORT is for one at a time: leave it out, or give --jobs 1")
    with _watching(arguments) as view:
        ctx = context_of(arguments, say=view.say)
        destinations = _destinations(arguments, ctx)
        rows, before = _selected(arguments, ctx.host)
        plan = _plan(arguments, ctx, migration, rows, before, destinations)
        options = EvacuationOptions(
            migration=migration,
            jobs=arguments.jobs,
            at_once=_AT_ONCE if ctx.hypervisor == XEN else None,
            weights=dict(arguments.weight),
            stop_on_failure=arguments.stop_on_failure,
        )
        if arguments.dry_run:
            return _show_plan(arguments, plan, options, before)
        view.begins(plan)
        descriptors.raise_limit(_DESCRIPTORS * min(options.jobs, len(plan.moves)))
        steer = Bandwidths(ctx.host.control_dir) if migration.bandwidth else None
        begin = partial(
            evacuate_guests, ctx, plan, destinations, options, watcher=view, steer=steer
        )
        result = run(told(begin))
    result = replace(result, guests=(*result.guests, *before))
    return _report(arguments, result)


def _destinations(arguments: argparse.Namespace, ctx: Context) -> dict[str, Destination]:
    """The destinations by name. Raises UsageError for one that is named twice, CommandError for the
    host itself, and as `destination_of`."""
    found: dict[str, Destination] = {}
    for text in arguments.to:
        destination = destination_of(arguments, text)
        if isinstance(destination, CommandDestination):
            # Several at once would write over each other.
            destination = replace(destination, keep_stderr=not arguments.verbose)
        if str(destination) in found:
            raise UsageError(f"--to {text}: named twice")
        if ctx.hypervisor != XEN and is_same_host(destination, Path(arguments.host)):
            raise CommandError(f"--to {text}: that is the host that is to be evacuated")
        found[str(destination)] = destination
    return found


def _selected(
    arguments: argparse.Namespace, host: Host
) -> tuple[list[DomainSummary], list[GuestEnd]]:
    """The guests to move, and those named that were moved by an earlier evacuation. Raises
    CommandError for a name that is neither."""
    # On Xen a domain that is being made has no name yet.
    here = [row for row in host.domains() if row.name]
    if not arguments.names:
        return here, []
    by_name = {row.name: row for row in here}
    by_domid = {str(row.domid): row for row in here}
    moved = record.moved(host.state_dir)
    rows: dict[int, DomainSummary] = {}
    before: dict[str, GuestEnd] = {}
    for name in arguments.names:
        row = (by_domid if is_domid(name) else by_name).get(name)
        if row is not None:
            rows[row.domid] = row
        elif name in moved:
            before[name] = GuestEnd(name, None, moved[name], Fate.MOVED_BEFORE)
        else:
            row = guest_of(host, name)
            rows[row.domid] = row
    return [*rows.values()], [*before.values()]


def _plan(
    arguments: argparse.Namespace,
    ctx: Context,
    migration: MigrateOptions,
    rows: Sequence[DomainSummary],
    before: Sequence[GuestEnd],
    destinations: dict[str, Destination],
) -> Plan:
    """Raises UsageError for a --weight or --order that names no guest to move."""
    if arguments.weight and not arguments.bandwidth:
        raise UsageError("--weight shares out a bandwidth: give --bandwidth as well")
    gone = {end.name for end in before} | set(record.moved(ctx.host.state_dir))
    names = {row.name for row in rows}
    order = [name.strip() for name in arguments.order.split(",") if name.strip()]
    for option, given in (("--weight", dict(arguments.weight)), ("--order", order)):
        for name in given:
            if name not in names | gone:
                there = ", ".join(sorted(names)) or "none"
                raise UsageError(f"{option}: {name!r} is not to move; guests to move: {there}")
    guests = look_at_guests(ctx.host, rows)
    postcopy = migration.strategy is MemoryStrategy.POSTCOPY
    places = [
        look_at_destination(destination, ctx.host, guests, postcopy=postcopy)
        for destination in destinations.values()
    ]
    at_once = arguments.jobs
    if ctx.hypervisor == XEN:
        at_once = min(at_once, _AT_ONCE * len(places))
    return make_plan(
        guests,
        places,
        bandwidth=arguments.bandwidth,
        jobs=at_once,
        max_rounds=migration.precopy.max_rounds,
        order=[name for name in dict.fromkeys(order) if name in names],
    )


def _show_plan(
    arguments: argparse.Namespace,
    plan: Plan,
    options: EvacuationOptions,
    before: Sequence[GuestEnd],
) -> int:
    """Print the plan; fails if a guest cannot move."""
    rooms = plan.rooms()
    limited = bool(arguments.bandwidth)
    value = {
        "jobs": options.jobs,
        "at_once": options.at_once,
        "moves": [
            {
                "name": move.guest.name,
                "domid": move.guest.domid,
                "memory": move.guest.memory,
                "destination": move.place,
                "expected_seconds": round(move.seconds, 3) if limited else None,
            }
            for move in plan.moves
        ],
        "stays": [
            {"name": stay.guest.name, "memory": stay.guest.memory, "reason": stay.reason}
            for stay in plan.stays
        ],
        "moved_before": [{"name": end.name, "destination": end.destination} for end in before],
        "destinations": [
            {
                "destination": place.name,
                "free": place.free,
                "takes": rooms.taken(place.name),
                "left": rooms.left(place.name),
            }
            for place in plan.places
        ],
    }

    def human() -> None:
        from xen_save_helper.toolstack.commands.evacuation_display import show_plan

        show_plan(plan, limited=limited)

    code = ExitCode.FAILED if plan.stays else ExitCode.SUCCESS
    return show(arguments, value, human, code)


def _report(arguments: argparse.Namespace, result: EvacuationResult) -> int:
    def human() -> None:
        from xen_save_helper.toolstack.commands.evacuation_display import show_result

        show_result(result)

    show(arguments, {**result.as_json(), "exit_code": int(result.exit_code)}, human)
    if result.interrupted:
        here = len(result.guests) - len(result.having(Fate.MOVED, Fate.MOVED_BEFORE))
        text = f"with {here} not moved; the same command goes on with them"
        complain(arguments, f"interrupted {text if here else 'too late: all have moved'}")
    return result.exit_code


@contextlib.contextmanager
def _watching(arguments: argparse.Namespace) -> Iterator[View]:
    """What shows the evacuation while it lasts: a table on a terminal, else lines."""
    view: View
    if arguments.json or arguments.dry_run:
        view = View()
    elif can_show_progress():
        from xen_save_helper.toolstack.commands.evacuation_display import LiveTable

        view = LiveTable()
    else:
        view = Lines()
    try:
        yield view
    finally:
        view.close()
