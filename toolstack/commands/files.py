"""save, restore, inspect."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ipc_schema.errors import DecodeError
from toolstack import save_file
from toolstack.cancellation import told
from toolstack.commands.common import CommandError, complain, guest_of, show
from toolstack.commands.running import context_of, progress_for, run
from toolstack.outcome import ExitCode

if TYPE_CHECKING:
    from toolstack.inspect import Entry

_INDENT: Final = " " * 20
_LIST_WIDTH: Final = 100


def save(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    if arguments.json and arguments.file in {"-", "/dev/stdout"}:
        raise CommandError("with --json, stdout is for the JSON; name another file")
    with progress_for(arguments, f"save {arguments.name}") as progress:
        ctx = context_of(arguments, progress=progress)
        saved = run(
            told(
                partial(
                    save_file.save,
                    ctx,
                    guest_of(ctx.host, arguments.name).domid,
                    path,
                    checkpoint=arguments.checkpoint,
                    leave_paused=arguments.paused,
                )
            )
        )
    # stdout may be the file.
    state = "ended" if saved.state is None else saved.state
    return show(
        arguments,
        asdict(saved),
        lambda: print(f"{saved.name} is saved in {saved.file}, and {state} here", file=sys.stderr),
    )


def restore(arguments: argparse.Namespace) -> int:
    with progress_for(arguments, "restore") as progress:
        ctx = context_of(arguments, progress=progress)
        path = Path(arguments.file)
        restored = run(told(partial(save_file.restore, ctx, path, leave_paused=arguments.paused)))
    return show(
        arguments,
        asdict(restored),
        lambda: print(f"{restored.name} is {restored.state} as domain {restored.domid}"),
    )


def inspect(arguments: argparse.Namespace) -> int:
    """One line (or, with --json, one object in a list) for each record; what came before a broken
    one is shown, too."""
    # It brings numpy, and no save needs it.
    from toolstack import inspect as inspection

    summary = inspection.Summary()
    entries: list[Entry] = []
    problem = ""
    with open(0 if arguments.file == "-" else arguments.file, "rb") as file:
        try:
            for entry in inspection.inspect(file, summary):
                if arguments.json:
                    entries.append(entry)
                else:
                    print(_line(entry))
        except DecodeError as error:
            problem = f"{arguments.file}: {error}"
    if arguments.json:
        print(
            json.dumps(
                {
                    "entries": [asdict(entry) for entry in entries],
                    "summary": summary.as_dict(),
                    "error": problem or None,
                },
                default=str,
            )
        )
    else:
        figures = summary.as_dict()
        print()
        for name, count in figures.pop("records").items():
            print(f"{count:>12} {name}")
        for name, value in figures.items():
            print(f"{'-' if value is None else value:>12} {name.replace('_', ' ')}")
    if problem:
        complain(arguments, problem)
        return ExitCode.FAILED
    return ExitCode.SUCCESS


def _line(entry: Entry) -> str:
    """A line, and under it what the entry lists."""
    what = ", ".join(f"{name} {_text(value)}" for name, value in entry.summary.items())
    lines = [
        f"{entry.offset:#012x} {entry.layer:6} {entry.name:24} {entry.length:>10} {what}".rstrip()
    ]
    for value in entry.summary.values():
        if isinstance(value, list):
            lines += textwrap.wrap(
                " ".join(value),
                _LIST_WIDTH,
                initial_indent=_INDENT,
                subsequent_indent=_INDENT,
                break_on_hyphens=False,
            )
    return "\n".join(lines)


def _text(value: object) -> str:
    if isinstance(value, list):
        return str(len(value))
    if isinstance(value, dict):
        return "(" + ", ".join(f"{name} {number}" for name, number in value.items()) + ")"
    return str(value)
