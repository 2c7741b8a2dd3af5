"""The command faults merge."""

from __future__ import annotations

import argparse
from pathlib import Path

from xen_save_helper.toolstack.campaign.campaign import State, StateError
from xen_save_helper.toolstack.campaign.merge import MergeError, read_shards
from xen_save_helper.toolstack.commands.common import CommandError
from xen_save_helper.toolstack.commands.fault_campaign import VERDICTS, say, write_reports
from xen_save_helper.toolstack.xl.outcome import ExitCode


def merge(arguments: argparse.Namespace) -> int:
    """Join shards into a campaign, and write the reports on it; what they have not run is missing
    there, too, and `campaign --resume` runs it."""
    directory = Path(arguments.out)
    path = directory / VERDICTS
    try:
        if path.exists():
            raise CommandError(
                f"{directory} has a campaign already: `--out` names another directory"
            )
        shards = read_shards([Path(given) / VERDICTS for given in arguments.shards])
        directory.mkdir(parents=True, exist_ok=True)
        shards.write(path)
        state = State(path)
    except (MergeError, StateError) as error:
        raise CommandError(str(error)) from error
    for shard in shards.missing:
        say(f"shard {shard} is missing")
    for shard, number in shards.unfinished().items():
        say(f"shard {shard} has not made {number} of its runs")
    found = write_reports(arguments, state, shards.selection.cells(), directory)
    if found.missing:
        say(f"`faults campaign --resume --out {directory}` makes the runs that are missing")
    return ExitCode.SUCCESS if found.all_hold else ExitCode.FAILED
