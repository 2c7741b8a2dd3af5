"""save, restore."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from xen_save_helper.toolstack.aio.file_argument import STDIN, STDOUT, file_of
from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.common import CommandError, check_new_name, guest_of, show
from xen_save_helper.toolstack.commands.running import context_of, progress_for, run
from xen_save_helper.toolstack.xl import save_file
from xen_save_helper.toolstack.xl.configuration import read_configuration


def save(arguments: argparse.Namespace) -> int:
    file = file_of(arguments.file, STDOUT)
    if arguments.json and _is_stdout(file):
        raise CommandError("with --json, stdout is for the JSON; name another file")
    with progress_for(arguments, f"save {arguments.name}") as progress:
        ctx = context_of(arguments, progress=progress)
        saved = run(
            told(
                partial(
                    save_file.save,
                    ctx,
                    guest_of(ctx.host, arguments.name).domid,
                    file,
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
        lambda: print(f"{saved.name} is saved to {saved.file}, and {state} here", file=sys.stderr),
    )


def _is_stdout(file: Path | int) -> bool:
    """Whether a stream into `file` would be mixed with what is printed."""
    try:
        status, stdout = os.stat(file), os.fstat(STDOUT)
    except OSError:
        return file == STDOUT
    return os.path.samestat(status, stdout) and not stat.S_ISCHR(status.st_mode)


def restore(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        check_new_name(arguments.name)
    file = file_of(arguments.file, STDIN)
    config = None
    if arguments.config is not None:
        config = read_configuration(Path(arguments.config))
    with progress_for(arguments, "restore") as progress:
        ctx = context_of(arguments, progress=progress)
        restored = run(
            told(
                partial(
                    save_file.restore,
                    ctx,
                    file,
                    leave_paused=arguments.paused,
                    name=arguments.name,
                    config=config,
                )
            )
        )
    return show(
        arguments,
        asdict(restored),
        lambda: print(f"{restored.name} is {restored.state} as domain {restored.domid}"),
    )
