"""The commands init, create, list, destroy, pause, unpause and rename."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    check_new_name,
    directory_of,
    guest_of,
    host_at,
    host_of,
    show,
)
from xen_save_helper.toolstack.operations.settle import why_not_suspend
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import Promise
from xen_save_helper.toolstack.xl.recover import OPERATIONS, domain_of, operations_on, waits_for

_COLUMNS: Final = (
    "name", "domid", "memory", "type", "workload", "state", "log_dirty", "pid", "waits"
)  # fmt: skip
"""The keys of a row that `list` prints."""

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host
    from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost


def init(arguments: argparse.Namespace) -> int:
    """Make a directory a host. If it is one already, only its memory and the features that its CPU
    lacks are changed; a directory with anything else in it is refused."""
    from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host

    lacks = None if arguments.lacks is None else _features(arguments.lacks)
    directory = Path(arguments.directory) if arguments.directory else directory_of(arguments)
    create_host(directory, arguments.memory, lacks or ())
    host = cast("SimulatedHost", host_at(directory))
    if arguments.memory is not None and host.memory != arguments.memory:
        host.bound_memory(arguments.memory)
    if lacks is not None and host.lacks != lacks:
        host.take_away(lacks)
    has: dict[str, object] = {} if host.memory is None else {"memory": host.memory}
    of = "" if host.memory is None else f" of {host.memory >> 20} MiB"
    if host.lacks:
        has["lacks"] = host.lacks
        of += f" without {', '.join(host.lacks)}"
    return show(
        arguments, {"host": str(directory), **has}, lambda: print(f"{directory} is a host{of}")
    )


def _features(text: str) -> list[str]:
    """Names of CPU features, separated by commas. Raises UsageError for an unknown one."""
    from xen_save_helper.ipc_schema.streams.cpu_features import all_but, features

    names = [name.strip() for name in text.split(",") if name.strip()]
    known = features(all_but(()))
    for name in names:
        if name not in known:
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "`inspect` of a saved guest lists some"
            raise UsageError(f"--lacks: unknown CPU feature {name!r}; {hint}")
    return names


def create(arguments: argparse.Namespace) -> int:
    host = host_at(directory_of(arguments))
    domid = create_guest(host, arguments)
    return show(
        arguments,
        {"name": arguments.name, "domid": domid},
        lambda: print(f"{arguments.name} runs as domain {domid}"),
    )


def create_guest(host: Host, arguments: argparse.Namespace) -> int:
    """Start a new simulated guest; returns its domid. Raises CommandError if the name is taken,
    UsageError if no guest can be like that."""
    from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour

    check_new_name(arguments.name)
    how, _, late = (arguments.behaviour or "normal").partition(":")
    try:
        behaviour = Behaviour[how.upper()]
        seconds = float(late or 0)
    except (KeyError, ValueError):
        raise UsageError(
            f"--behaviour {arguments.behaviour!r}: want normal, refuse, late:SECONDS or die"
        ) from None
    simulated = cast("SimulatedHost", host)
    try:
        return simulated.create_guest(
            arguments.name,
            arguments.memory,
            arguments.workload,
            arguments.rate,
            type=arguments.type,
            behaviour=behaviour,
            behaviour_seconds=seconds,
        )
    except FileExistsError:
        raise CommandError(f"there is already a guest {arguments.name!r} on this host") from None
    except ValueError as error:
        raise UsageError(str(error)) from error


def show_list(arguments: argparse.Namespace) -> int:
    """Show the guests. In JSON, `memory` is in bytes; `workload` and `pid` are null unless the
    guest is simulated, `log_dirty` if the hypervisor does not tell; `waits` is what a guest in the
    middle of an operation waits for, or null. A journal whose guest is gone has a row as well: the
    state is `gone`, `waits` says what to do, and the rest is null."""
    host = host_of(arguments)
    waits: dict[int, str] = {}
    left: list[dict[str, Any]] = []
    for entry in journal.entries(host.state_dir):
        row = domain_of(host, entry)
        if row is not None:
            waits[row.domid] = waits_for(entry)
        elif not entry.process.alive():
            text = f"`recover {entry.name}` (its {OPERATIONS[entry.role]} left a journal)"
            left.append({**dict.fromkeys(_COLUMNS), "name": entry.name, "state": "gone",
                         "waits": text})  # fmt: skip
    domains = host.domains()
    for row in domains:
        if row.state.value == "suspended":
            waits.setdefault(row.domid, f"a person: see `recover {row.name}`")
    rows = [
        {
            "name": row.name,
            "domid": row.domid,
            "memory": row.memory,
            "type": row.type,
            "workload": row.workload,
            "state": row.state.value,
            "log_dirty": row.log_dirty,
            "pid": row.pid,
            "waits": waits.get(row.domid),
        }
        for row in domains
    ]
    rows += left

    def human() -> None:
        if arguments.name:
            print(*(row["name"] for row in rows), sep="\n", end="\n" if rows else "")
            return
        from xen_save_helper.toolstack.commands.display import guests

        guests(rows)

    return show(arguments, rows, human)


def destroy(arguments: argparse.Namespace) -> int:
    host = host_of(arguments)
    guest = guest_of(host, arguments.name)
    left = [entry for entry in operations_on(host, guest) if not entry.process.alive()]
    host.destroy(guest.domid)
    for entry in left:
        journal.remove(host.state_dir, entry)
    return _done(arguments, guest, "destroyed")


def _check_not_dead(guest: DomainSummary) -> None:
    """Raise CommandError if the guest will never run again."""
    if guest.state.value in ("crashed", "shut down"):
        raise CommandError(why_not_suspend(guest))


def pause(arguments: argparse.Namespace) -> int:
    """Pause a guest. Refused during a save or migration of it: it could not suspend then."""
    host = host_of(arguments)
    guest = guest_of(host, arguments.name)
    for entry in operations_on(host, guest):
        if entry.process.alive():
            raise CommandError(f"{guest.name!r} cannot be paused: it waits for {waits_for(entry)}")
    _check_not_dead(guest)
    host.pause(guest.domid)
    return _done(arguments, guest, "paused")


def unpause(arguments: argparse.Namespace) -> int:
    """Let a paused guest run. Refused for a suspended guest, and for a copy that is not whole or
    that the source has not let go yet."""
    host = host_of(arguments)
    guest = guest_of(host, arguments.name)
    partial = {Promise.RECEIVING, Promise.GO_RECEIVED, Promise.RESUMED}
    for entry in operations_on(host, guest):
        if guest.state.value == "suspended" or entry.promise in partial:
            raise CommandError(f"{guest.name!r} waits for {waits_for(entry)}")
    _check_not_dead(guest)
    host.unpause(guest.domid)
    return _done(arguments, guest, "running")


def rename(arguments: argparse.Namespace) -> int:
    """Give a guest another name. Refused if an operation on it is under way or was left in the
    middle: its journal knows it by name. A guest that was received whole, but whose own name was
    taken, keeps the new one."""
    check_new_name(arguments.new)
    host = host_of(arguments)
    guest = guest_of(host, arguments.name)
    entries = operations_on(host, guest)
    for entry in entries:
        if entry.process.alive() or entry.promise is not Promise.STARTED:
            raise CommandError(f"{guest.name!r} waits for {waits_for(entry)}")
    host.rename(guest.domid, arguments.new)
    for entry in entries:
        journal.remove(host.state_dir, entry)
    return show(
        arguments,
        {"name": arguments.new, "domid": guest.domid},
        lambda: print(f"{guest.name} is now called {arguments.new}"),
    )


def _done(arguments: argparse.Namespace, guest: DomainSummary, state: str) -> int:
    return show(
        arguments,
        {"name": guest.name, "state": state},
        lambda: print(f"{guest.name} is {state}"),
    )
