"""The commands save and restore."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from xen_save_helper.toolstack.aio.file_argument import STDERR, STDIN, STDOUT, file_of, name_of
from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.common import CommandError, check_new_name, guest_of, show
from xen_save_helper.toolstack.commands.running import context_of, progress_for, run
from xen_save_helper.toolstack.xl import restore_file, save_file
from xen_save_helper.toolstack.xl.configuration import read_configuration


def save(arguments: argparse.Namespace) -> int:
    file = file_of(arguments.file, STDOUT)
    if arguments.json and _is_output(file, STDOUT):
        raise CommandError("with --json, stdout is for the JSON; name another file")
    if _is_output(file, STDERR):
        raise CommandError(
            f"a save into {name_of(file)} would be mixed with the messages on stderr; redirect "
            "stderr, or name another file"
        )
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
                    sparse=arguments.sparse,
                )
            )
        )
    state = "has ended" if saved.state is None else f"is {saved.state}"
    return show(
        arguments,
        asdict(saved),
        # On stderr, since stdout may be the file.
        lambda: print(f"{saved.name} is saved to {saved.file} and {state} here", file=sys.stderr),
    )


def _is_output(file: Path | int, standard: int) -> bool:
    """Whether a stream into `file` would be mixed with what is printed to a standard stream; a
    device (/dev/null) mixes nothing, and a terminal is refused anyway."""
    try:
        status, output = os.stat(file), os.fstat(standard)
    except OSError:
        return file == standard
    return os.path.samestat(status, output) and not stat.S_ISCHR(status.st_mode)


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
                    restore_file.restore,
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
