"""The command timeline."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    is_domid,
    show,
)
from xen_save_helper.toolstack.timeline import page, trace_event, words
from xen_save_helper.toolstack.timeline.files import (
    picture_of,
    write_page,
    write_trace_event,
)
from xen_save_helper.toolstack.timeline.operations import Operation, find_operations
from xen_save_helper.toolstack.timeline.picture import Picture
from xen_save_helper.toolstack.timeline.trace_lines import read_trace

STDOUT: Final = "-"


def timeline(arguments: argparse.Namespace) -> int:
    paths = [Path(name) for name in arguments.events]
    files = [read_trace(path) for path in paths]
    operations = find_operations(files)
    if not operations:
        notes = "; ".join(note for file in files for note in file.notes)
        raise CommandError(
            f"{', '.join(arguments.events)}: no save, restore or migration is in the trace"
            + (f" ({notes})" if notes else "")
        )
    if arguments.list:
        return _list(arguments, operations)
    number = _chosen(arguments, operations)
    picture = picture_of(files, operations[number - 1])
    output, other = _targets(arguments, paths)
    if output == STDOUT:
        print(page.page(picture), end="")
    elif output is not None:
        write_page(picture, Path(output))
    if other == STDOUT:
        print(trace_event.text(picture))
    elif other is not None:
        write_trace_event(picture, Path(other))
    if STDOUT in {output, other}:
        return 0
    value = {
        "operation": number,
        "operations": len(operations),
        "title": picture.title,
        "outcome": picture.headline,
        "page": output,
        "trace_event": other,
        "clocks": _clocks(picture),
        "notes": list(picture.notes),
    }
    return show(arguments, value, lambda: _say(picture, number, operations, output, other))


def _targets(
    arguments: argparse.Namespace, traces: Sequence[Path]
) -> tuple[str | None, str | None]:
    """The page and the Trace Event file to write. Raises UsageError for one that is a trace."""
    output, other = arguments.output, arguments.trace_event
    if output is None and other is None:
        output = f"{traces[0].stem or 'timeline'}.html"
    if output == other:
        raise UsageError("-o and --trace-event: want two files")
    for name in (output, other):
        if name in {None, STDOUT} or not os.path.exists(name):
            continue
        for trace in traces:
            if os.path.samefile(trace, name):
                raise UsageError(f"{name} is one of the traces, and would be overwritten")
    return output, other


def _chosen(arguments: argparse.Namespace, operations: Sequence[Operation]) -> int:
    """The number of the operation to draw: from 1. Raises UsageError, CommandError."""
    if arguments.operation is not None:
        if arguments.guest is not None:
            raise UsageError("--operation and --guest: want one of them")
        if arguments.operation > len(operations):
            raise CommandError(
                f"there is no operation {arguments.operation}; the traces hold {len(operations)}, "
                "and --list shows them"
            )
        return int(arguments.operation)
    if arguments.guest is None:
        return len(operations)
    wanted = arguments.guest
    fits = [
        number
        for number, one in enumerate(operations, 1)
        if (wanted in _domids(one) if is_domid(wanted) else one.guest == wanted)
    ]
    if not fits:
        names = ", ".join(sorted({one.name for one in operations}))
        raise CommandError(f"no operation on {wanted!r} is in the traces; guests: {names}")
    return fits[-1]


def _domids(operation: Operation) -> set[str]:
    return {str(side.domid) for side in operation.sides if side.domid is not None}


def _list(arguments: argparse.Namespace, operations: Sequence[Operation]) -> int:
    rows = [
        {
            "operation": number,
            "kind": one.kind,
            "guest": one.guest,
            "domid": one.domid,
            "begun": one.realtime,
            "seconds": round(max(side.end - side.start for side in one.sides), 6),
            "sides": [("destination", "source")[side.saves] for side in one.sides],
        }
        for number, one in enumerate(operations, 1)
    ]

    def human() -> None:
        for number, one in enumerate(operations, 1):
            length = max(side.end - side.start for side in one.sides)
            row = f"{number:>4}  {_when(one):19}  {one.kind:9}  {words.seconds(length):>10}"
            print(f"{row}  {one.name}")

    return show(arguments, rows, human)


def _when(operation: Operation) -> str:
    at = operation.realtime
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def _clocks(picture: Picture) -> dict[str, object] | None:
    alignment = picture.alignment
    if alignment is None:
        return None
    return {
        "offset_seconds": alignment.offset,
        "error_seconds": None if alignment.error == float("inf") else alignment.error,
        "sure": alignment.sure,
        "how": alignment.how,
    }


def _say(
    picture: Picture,
    number: int,
    operations: Sequence[Operation],
    output: str | None,
    other: str | None,
) -> None:
    print(f"{picture.title}; {picture.headline}")
    if len(operations) > 1:
        print(
            f"operation {number} of {len(operations)} in the traces; --list shows them, "
            "--operation N or --guest NAME takes another one"
        )
    if picture.alignment is not None:
        error = picture.alignment.error
        shown = "an unknown error" if error == float("inf") else f"± {words.seconds(error)}"
        offset = words.offset(picture.alignment.offset)
        print(f"the destination's clock is ahead by {offset}, {shown}: {picture.alignment.how}")
    for note in picture.notes:
        print(note)
    print(", ".join(name for name in (output, other) if name is not None))
