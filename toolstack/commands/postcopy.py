"""The commands postcopy list, status, wait, reconnect, restart and abandon: what goes on after a
migration whose last pages go over a link of their own."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.channel.listen import parse_listen
from xen_save_helper.ipc_schema.control import (
    Ask,
    Identity,
    PostcopyStatus,
    Role,
)
from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    complain,
    control_directory_of,
    is_domid,
    show,
    state_directory_of,
)
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError
from xen_save_helper.toolstack.helpers.pager import start_again
from xen_save_helper.toolstack.rules.handshake import INCOMING
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.outcome import ExitCode

_LONGEST_END: Final = 30.0
"""Seconds in which one that is abandoned ends."""
_AT_ONCE: Final = 3600.0
WITHOUT: Final = {
    Role.PAGE_SERVER: "the guest at the destination is lost without the pages that are left here",
    Role.PAGER: "the guest is lost without the pages that are still to come",
}


def show_list(arguments: argparse.Namespace) -> int:
    """Show all page servers and pagers."""
    directory = control_directory_of(arguments)
    rows = [_row(directory, process) for process in control.processes(directory)]

    def human() -> None:
        if arguments.name:
            names = dict.fromkeys(str(row["domain"]) for row in rows)
            print(*names, sep="\n", end="\n" if names else "")
        else:
            _print(rows)

    return show(arguments, rows, human)


def show_status(arguments: argparse.Namespace) -> int:
    """Show those of one guest; FAILED if one of them has lost its pages."""
    directory = control_directory_of(arguments)
    rows = [_row(directory, process) for process in _of_guest(directory, arguments.name)]
    lost = any(row["lost"] for row in rows)
    code = ExitCode.FAILED if lost else ExitCode.SUCCESS
    return show(arguments, rows, lambda: _print(rows), code)


def wait(arguments: argparse.Namespace) -> int:
    """Until all pages of these guests, or of all, are in place."""
    directory = control_directory_of(arguments)
    names = arguments.names
    those = [process for name in names for process in _any_of_guest(directory, name)]
    waited_for = those if names else control.processes(directory)
    end = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    rows: list[dict[str, Any]] = []
    code = ExitCode.SUCCESS
    for process in waited_for:
        lost = ""
        try:
            _wait_for(directory, process, end)
        except EndedError as error:
            lost = error.lost
        except TimeoutError:
            lost = _still(directory, process)
        if lost:
            code = ExitCode.FAILED
            complain(arguments, f"{_named(process)}: {lost}")
        rows.append({"domain": process.domain, "domid": process.domid, "lost": lost})

    def human() -> None:
        if not rows:
            print("no postcopy is going on")
        for process, row in zip(waited_for, rows, strict=True):
            if not row["lost"]:
                print(f"{_named(process)}: no page is missing any more")

    return show(arguments, rows, human, code)


def reconnect(arguments: argparse.Namespace) -> int:
    """Have a pager reach its page server at another address, or a page server listen there, too."""
    try:
        where = parse_listen(arguments.address)
    except ValueError as error:
        raise UsageError(f"{arguments.address!r}: want {error}") from None
    directory = control_directory_of(arguments)
    process = _one_of_guest(directory, arguments.name)
    port = where.port
    if not port and process.role is Role.PAGER:
        port = _working(directory, process).port
    told = _ask(directory, process, Ask.RECONNECT, address=where.address, port=port)
    verb = "listens" if process.role is Role.PAGE_SERVER else "connects"
    text = f"{_named(process)}: it {verb} at {told['address']}, port {told['port']}"
    return show(arguments, told, lambda: print(text))


def restart(arguments: argparse.Namespace) -> int:
    """Start another pager in the place of one that has died."""
    directory = control_directory_of(arguments)
    process = _one_of_guest(directory, arguments.name)
    if process.role is not Role.PAGER:
        raise CommandError(
            f"{_named(process)}: its pages are lost with it; only a pager can follow"
        )
    try:
        control.status(directory, process)
    except EndedError as error:
        if not error.lost or process.ended:
            raise _has_ended(process, error) from None
    except TimeoutError as error:
        raise CommandError(f"{error}: it has not died") from None
    else:
        raise CommandError(f"{_named(process)}: it has not died")
    serves = start_again(directory, process, arguments.events or "")
    control.forget(directory, process)
    text = f"{_named(process)}: another one has taken its place ({serves})"
    return show(arguments, {"process": serves}, lambda: print(text))


def abandon(arguments: argparse.Namespace) -> int:
    """End a page server or pager, or forget one that has ended."""
    directory = control_directory_of(arguments)
    process = _one_of_guest(directory, arguments.name)
    try:
        status = control.status(directory, process)
    except EndedError as error:
        known = _forget(arguments, directory, process, error.lost)
        done = "forgotten" if known else "its migration has yet to hear of it"
        text = f"{_named(process)}: {done}; {error.lost or 'it had done its work'}"
        return show(arguments, {"lost": error.lost}, lambda: print(text))
    left = status.pages_left
    if left and not arguments.lose_the_guest:
        raise CommandError(
            f"{_named(process)}: {WITHOUT[process.role]} ({left}); "
            "if that is what you want, give --lose-the-guest"
        )
    lost = ""
    try:
        control.ask(directory, process, Ask.ABANDON)
        control.wait(directory, process, _LONGEST_END)
    except EndedError as error:
        lost = error.lost
        _forget(arguments, directory, process, lost)
    text = f"{_named(process)}: abandoned; {left} pages are lost"
    if not lost:
        text = f"{_named(process)}: it had done its work"
    return show(arguments, {"lost": lost}, lambda: print(text))


def _forget(arguments: argparse.Namespace, directory: Path, process: Identity, lost: str) -> bool:
    """Whatever becomes of the guest must not take pages for sent of which nothing is known any
    more. Returns False if what is left stays, for a migration that looks for it."""
    of_source = lost and process.role is Role.PAGE_SERVER
    if of_source and journal.pages_lost(state_directory_of(arguments), process.domid):
        return False
    control.forget(directory, process)
    return True


def _of_guest(directory: Path, name: str) -> list[Identity]:
    """Those of the guest that is named so, or has this domid. Raises CommandError if there is
    none."""
    found = _any_of_guest(directory, name)
    if not found:
        known = sorted({_domain(directory, one) for one in control.processes(directory)})
        others = f"; there is one of {', '.join(known)}" if known else ""
        raise CommandError(f"no postcopy of {name!r} is going on here{others}")
    return found


def _any_of_guest(directory: Path, name: str) -> list[Identity]:
    all_of_them = control.processes(directory)
    if is_domid(name):
        return [process for process in all_of_them if process.domid == int(name)]
    return [process for process in all_of_them if _domain(directory, process) == name]


def _one_of_guest(directory: Path, name: str) -> Identity:
    found = _of_guest(directory, name)
    if len(found) > 1:
        which = ", ".join(f"{one.role.value} with domid {one.domid}" for one in found)
        raise CommandError(f"{name!r} has more than one here ({which}): give a domid")
    return found[0]


def _domain(directory: Path, process: Identity) -> str:
    """The guest's name: a pager's gets it when it has been restored."""
    try:
        return control.status(directory, process).domain
    except (EndedError, OSError):
        return process.domain.removesuffix(INCOMING)


def _row(directory: Path, process: Identity) -> dict[str, Any]:
    """A `PostcopyStatus`, and `lost`: why the process has ended. What is not known is None."""
    known = dict.fromkeys(PostcopyStatus._fields) | process._asdict()
    del known["ended"]
    try:
        return {**control.status(directory, process)._asdict(), "lost": ""}
    except EndedError as error:
        return {**known, "lost": error.lost}
    except TimeoutError as error:
        return {**known, "trouble": str(error), "lost": ""}


def _wait_for(directory: Path, process: Identity, end: float) -> None:
    while True:
        seconds = min(end - time.monotonic(), _AT_ONCE)
        try:
            control.wait(directory, process, max(0.001, seconds))
            return
        except TimeoutError:
            if time.monotonic() >= end:
                raise


def _still(directory: Path, process: Identity) -> str:
    row = _row(directory, process)
    if row["pages_left"] is None:
        return str(row["lost"] or row["trouble"])
    return f"{row['pages_left']} pages are still to come"


def _working(directory: Path, process: Identity) -> PostcopyStatus:
    try:
        return control.status(directory, process)
    except EndedError as error:
        raise _has_ended(process, error) from None


def _ask(directory: Path, process: Identity, what: Ask, **fields: Any) -> dict[str, Any]:
    try:
        return control.ask(directory, process, what, **fields)
    except EndedError as error:
        raise _has_ended(process, error) from None


def _has_ended(process: Identity, error: EndedError) -> CommandError:
    return CommandError(f"{_named(process)}: {error.lost or 'it has done its work'}")


def _named(process: Identity) -> str:
    return f"{process.role.value} of {process.domain} (domid {process.domid})"


def _print(rows: list[dict[str, Any]]) -> None:
    from xen_save_helper.toolstack.commands import display

    if rows:
        display.postcopies(rows)
    else:
        print("no postcopy is going on")
