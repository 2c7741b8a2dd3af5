"""save, restore, inspect."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from toolstack import save_file
from toolstack.commands.common import CommandError, domid_of, show
from toolstack.commands.running import context_of, progress_for, run
from toolstack.outcome import ExitCode


def save(arguments: argparse.Namespace) -> int:
    path = Path(arguments.file)
    if arguments.json and arguments.file in {"-", "/dev/stdout"}:
        raise CommandError("with --json, stdout is for the JSON; name another file")
    with progress_for(arguments, f"save {arguments.name}") as progress:
        ctx = context_of(arguments, progress=progress)
        saved = run(
            save_file.save(
                ctx,
                domid_of(ctx.host, arguments.name),
                path,
                checkpoint=arguments.checkpoint,
                leave_paused=arguments.paused,
            )
        )
    # stdout may be the file.
    state = "ended" if saved.state is None else saved.state
    show(
        arguments,
        asdict(saved),
        lambda: print(f"{saved.name} is saved in {saved.file}, and {state} here", file=sys.stderr),
    )
    return ExitCode.SUCCESS


def restore(arguments: argparse.Namespace) -> int:
    with progress_for(arguments, "restore") as progress:
        ctx = context_of(arguments, progress=progress)
        restored = run(save_file.restore(ctx, Path(arguments.file), leave_paused=arguments.paused))
    show(
        arguments,
        asdict(restored),
        lambda: print(f"{restored.name} is {restored.state} as domain {restored.domid}"),
    )
    return ExitCode.SUCCESS


def inspect(arguments: argparse.Namespace) -> int:
    raise NotImplementedError
