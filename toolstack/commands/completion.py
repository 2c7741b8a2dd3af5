"""The command completion."""

from __future__ import annotations

import argparse
from importlib import metadata
from pathlib import Path

from xen_save_helper.ipc_schema.version import DISTRIBUTION
from xen_save_helper.toolstack.commands.common import CommandError
from xen_save_helper.toolstack.commands.shell.places import COMPLETIONS
from xen_save_helper.toolstack.xl.outcome import ExitCode


def completion(arguments: argparse.Namespace) -> int:
    """Print a completion script, as it was installed."""
    place = COMPLETIONS[arguments.shell][0].format(arguments.of)
    try:
        files = metadata.files(DISTRIBUTION) or ()
    except metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.as_posix().endswith(f"/{place}"):
            print(Path(str(file.locate())).read_text(), end="")
            return ExitCode.SUCCESS
    raise CommandError(
        f"{place} is not among the files of this installation; a package of a distribution has it "
        "where the shell finds it by itself"
    )
