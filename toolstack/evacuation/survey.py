"""The look at the hosts before a plan: what keeps a guest here, and where there is room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xen_save_helper.toolstack.evacuation.plan import Guest, Place
from xen_save_helper.toolstack.operations.settle import why_not_suspend
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import INCOMING
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.migrate_options import Destination, HostDestination
from xen_save_helper.toolstack.xl.recover import domain_of, waits_for

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

_PAGE = 4096


def look_at_guests(host: Host, rows: Sequence[DomainSummary]) -> list[Guest]:
    """The guests of `rows`, with what keeps them from moving. Raises OSError."""
    waits: dict[int, str] = {}
    for entry in journal.entries(host.state_dir):
        row = domain_of(host, entry)
        if row is not None:
            waits[row.domid] = f"waits for {waits_for(entry)}"
    return [
        Guest(
            name=row.name,
            domid=row.domid,
            memory=row.memory,
            dirty_rate=_dirty_rate(host, row),
            obstacle=waits.get(row.domid) or why_not_suspend(row),
        )
        for row in rows
    ]


def _dirty_rate(host: Host, row: DomainSummary) -> float | None:
    """The bytes a second that a simulated guest writes to. Xen tells none before log-dirty mode is
    on, and that costs the guest."""
    if row.workload is None:
        return None
    from xen_save_helper.helper.hypervisors.simulated.kinds import DEFAULT_RATES, NAMES

    try:
        rate = host.config(row.domid)["simulated"].get("rate")
    except ProcessLookupError:
        return None  # it is gone; who tries to move it will say so
    return _PAGE * float(DEFAULT_RATES[NAMES[row.workload]] if rate is None else rate)


def look_at_destination(
    destination: Destination, source: Host, guests: Sequence[Guest], *, postcopy: bool
) -> Place:
    """A destination, with what is certain about it beforehand. A command says nothing before its
    receiver is asked. Raises OSError."""
    name = str(destination)
    if not isinstance(destination, HostDestination):
        return Place(name)
    host = destination.host
    taken = {row.name for row in host.domains()}
    free = host.free_memory()
    no_postcopy = host.why_no_postcopy() if postcopy else ""
    objections = {}
    for guest in guests:
        if guest.obstacle:
            continue
        if guest.name in taken:
            objections[guest.name] = f"there is another guest {guest.name!r}"
        elif guest.name + INCOMING in taken:
            objections[guest.name] = f"there is a guest {guest.name + INCOMING!r}"
        elif no_postcopy:
            objections[guest.name] = no_postcopy
        elif (free is None or guest.memory <= free) and (
            problem := _why_not_create(host, source, guest)
        ):
            objections[guest.name] = problem
    return Place(name, free, objections)


def _why_not_create(host: Host, source: Host, guest: Guest) -> str:
    try:
        config: Mapping[str, Any] = source.config(guest.domid)
    except ProcessLookupError as error:
        return message_of(error)
    return host.why_not_create(config)


def is_same_host(destination: Destination, source_directory: Path) -> bool:
    """Whether a destination is the simulated host at `source_directory` itself."""
    return isinstance(destination, HostDestination) and destination.directory.samefile(
        source_directory
    )
