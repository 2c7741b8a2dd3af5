"""The commands status, cancel, set, switch, pause-sending and resume-sending: running operations,
seen and steered from another shell (`ipc_schema.control`)."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.control import (
    OUTLIVING,
    PARAMETERS,
    Ask,
    Identity,
    PostcopyStatus,
    Role,
)
from xen_save_helper.ipc_schema.operation_status import OperationStatus
from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    control_directory_of,
    hypervisor_of,
    is_domid,
    show,
)
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError, RefusedError
from xen_save_helper.toolstack.rules.handshake import INCOMING
from xen_save_helper.toolstack.xl.outcome import ExitCode

_LONGEST_END: Final = 120.0
"""Seconds in which an operation that is cancelled ends: its limits are shorter."""
_Known = tuple[Identity, dict[str, Any]]
"""What runs, and its row of `status`."""
_DROP_INS: Final = frozenset({Role.HELPER_SAVE, Role.HELPER_RESTORE})


def show_status(arguments: argparse.Namespace) -> int:
    """Show the running operations, or the one of a guest; page servers and pagers are among
    them."""
    if arguments.openmetrics and (arguments.json or arguments.watch):
        raise UsageError("--openmetrics goes with neither --json nor --watch")
    if arguments.openmetrics:
        # A missing library is told even if there is nothing to show.
        from xen_save_helper.toolstack.commands import openmetrics
    directory = _directory(arguments)
    if arguments.watch:
        return _watch(arguments, directory)
    rows = _rows(directory, arguments.name)
    if arguments.openmetrics:
        print(openmetrics.exposition(rows), end="")
        return ExitCode.SUCCESS
    return show(arguments, rows, lambda: _print(rows, arguments.name))


def cancel(arguments: argparse.Namespace) -> int:
    directory, process = _one(arguments)
    with _told(process):
        ended = control.cancel(directory, process, _LONGEST_END)
    if not ended:
        raise CommandError(f"{_named(process)}: it had done its work before it could be cancelled")
    text = f"{_named(process)}: cancelled: {ended}"
    return show(arguments, {"ended": ended}, lambda: print(text))


def set_parameters(arguments: argparse.Namespace) -> int:
    given = {name: getattr(arguments, name) for name in PARAMETERS}
    given = {name: value for name, value in given.items() if value is not None}
    if not given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in PARAMETERS)
        raise UsageError(f"set: want one or more of {options}")
    directory, process = _one(arguments)
    now = _ask(directory, process, Ask.SET, **given)

    def human() -> None:
        from xen_save_helper.toolstack.commands.display import limits

        print(f"{_named(process)}: {limits(now)}")

    return show(arguments, now, human)


def switch(arguments: argparse.Namespace) -> int:
    return _steer(arguments, Ask.SWITCH, f"precopy ends with {arguments.to}", to=arguments.to)


def pause_sending(arguments: argparse.Namespace) -> int:
    return _steer(arguments, Ask.PAUSE_SENDING, "sending is paused")


def resume_sending(arguments: argparse.Namespace) -> int:
    return _steer(arguments, Ask.RESUME_SENDING, "sending goes on")


def _steer(arguments: argparse.Namespace, what: Ask, done: str, **fields: Any) -> int:
    directory, process = _one(arguments)
    told = _ask(directory, process, what, **fields)
    return show(arguments, told, lambda: print(f"{_named(process)}: {done}"))


def _directory(arguments: argparse.Namespace) -> Path:
    hypervisor_of(arguments)  # a host must be named where there is none
    return control_directory_of(arguments)


def _one(arguments: argparse.Namespace) -> tuple[Path, Identity]:
    """The operation on the guest that is named. Raises CommandError."""
    directory = _directory(arguments)
    running = [*control.operations(directory), *control.processes(directory, OUTLIVING)]
    found = _of_guest(_known(directory, running), arguments.name)
    steered = [one for one in found if one[0].role not in OUTLIVING]
    if not steered:
        what = " and ".join(sorted({one[0].role.value for one in found}))
        raise CommandError(
            f"the operation on {arguments.name!r} is over here, but for its {what}: see `postcopy`"
        )
    found = steered
    if len(found) > 1:
        # A controller answers for the drop-in that it has started.
        found = [one for one in found if one[0].role not in _DROP_INS] or found
    if len(found) > 1:
        which = ", ".join(map(_with_domid, found))
        raise CommandError(
            f"more than one operation on {arguments.name!r} is going on; name one by its domid: "
            f"{which}"
        )
    return directory, found[0][0]


def _with_domid(known: _Known) -> str:
    process, row = known
    if row["domid"] < 0:
        return f"{process.role.value} (its domain is not made yet)"
    return f"{process.role.value} of domid {row['domid']}"


def _rows(directory: Path, name: str | None) -> list[dict[str, Any]]:
    running = [*control.operations(directory), *control.processes(directory, OUTLIVING)]
    known = _known(directory, running)
    return [row for _, row in (known if name is None else _of_guest(known, name))]


def _known(directory: Path, running: list[Identity]) -> list[_Known]:
    """Those that have not ended meanwhile, with their rows."""
    rows = ((process, _row(directory, process)) for process in running)
    return [(process, row) for process, row in rows if row is not None]


def _of_guest(known: list[_Known], name: str) -> list[_Known]:
    """Those on the guest of this name or domid. Raises CommandError if there is none."""
    if is_domid(name):
        found = [one for one in known if one[1]["domid"] == int(name)]
    else:
        found = [one for one in known if one[1]["domain"] in (name, name + INCOMING)]
    if not found:
        names = sorted({row["domain"] for _, row in known})
        others = f"; there is one on {', '.join(names)}" if names else ""
        raise CommandError(f"no operation on {name!r} is going on here{others}")
    return found


def _row(directory: Path, process: Identity) -> dict[str, Any] | None:
    """An `OperationStatus` or a `PostcopyStatus`; what is not known is None: one that does not
    answer, or has other fields, as one of another version. None if it has ended."""
    try:
        row = control.ask(directory, process, Ask.STATUS)
        (PostcopyStatus if process.role in OUTLIVING else OperationStatus).decode(row)
        return row
    except EndedError:
        return None
    except (TimeoutError, ValueError) as error:
        known = {"role": process.role, "domid": process.domid, "domain": process.domain}
        fields = dict.fromkeys(OperationStatus._fields)
        return {**fields, **known, "pid": process.pid, "waits_for": f"itself: {error}"}


def _watch(arguments: argparse.Namespace, directory: Path) -> int:
    """Show them again and again, until there is none any more."""
    from xen_save_helper.toolstack.commands import display

    seen = False
    with display.watching(json=arguments.json) as paint:
        while True:
            try:
                rows = _rows(directory, arguments.name)
            except CommandError:
                if not seen:
                    raise
                rows = []
            paint(rows)
            if not rows:
                return ExitCode.SUCCESS
            seen = True
            time.sleep(arguments.watch)


def _ask(directory: Path, process: Identity, what: Ask, **fields: Any) -> dict[str, Any]:
    with _told(process):
        return control.ask(directory, process, what, **fields)


@contextmanager
def _told(process: Identity) -> Iterator[None]:
    """Translate what an operation answers, or that it has ended, into a CommandError."""
    try:
        yield
    except EndedError as error:
        raise CommandError(f"{_named(process)}: {error.lost or 'it has ended'}") from None
    except RefusedError as error:
        raise CommandError(f"{_named(process)}: {error.why}") from None
    except TimeoutError as error:
        why = str(error).removeprefix(f"{process.name}: ")
        raise CommandError(f"{_named(process)}: {why}") from None
    except ValueError as error:
        raise CommandError(f"{_named(process)}: its answer is none: {error}") from None


def _named(process: Identity) -> str:
    return f"{process.role.value} of {process.domain}"


def _print(rows: list[dict[str, Any]], name: str | None) -> None:
    from xen_save_helper.toolstack.commands import display

    if not rows:
        print("nothing is going on")
    elif name is not None and len(rows) == 1:
        display.operation(rows[0])
    else:
        display.operations(rows)
