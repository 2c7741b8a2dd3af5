"""The commands of `faults`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from xen_save_helper.toolstack.commands.common import count, guest_size, positive
from xen_save_helper.toolstack.commands.parser.adding import Commands, add_group
from xen_save_helper.toolstack.commands.parser.shared import WORKLOADS, add_events, add_limit
from xen_save_helper.toolstack.commands.parser.timeline import add_timeline_option

if TYPE_CHECKING:
    from xen_save_helper.toolstack.campaign.shards import Shard

FAULT_MODES: Final = ("save", "stop-and-copy", "live", "postcopy", "link")


def add_fault_commands(
    commands: Commands,
) -> None:
    """Add the commands of `faults`; they make their own hosts, so there is no --host."""
    text = "provoke faults in a save or migration, and judge how it ends"
    command = add_group(commands, "faults", text)
    command("list", "faults:show_points", "show every point, and what can be done there")

    run = command("run", "faults:run", "run a plan once on two simulated hosts, and judge it")
    run.add_argument(
        "plan",
        metavar="PLAN|@FILE",
        help="such as `postcopy_transition:before-answer=kill`; `faults list` explains plans",
    )
    add_limit(run)
    add_events(run)
    add_timeline_option(run)
    run.add_argument("--mode", choices=FAULT_MODES, default="live")
    run.add_argument(
        "--memory", type=guest_size, default=4 << 20, metavar="SIZE", help="default: 4M"
    )
    run.add_argument("--workload", choices=WORKLOADS, default="write-heavy")

    campaign = command(
        "campaign",
        "fault_campaign:campaign",
        "run every point with every action, or a sample, and write reports",
    )
    add_limit(campaign)
    campaign.add_argument("-v", "--verbose", action="store_true", help="show all runs")
    campaign.add_argument(
        "--modes",
        metavar="MODE,...",
        help=f"some of {', '.join(FAULT_MODES)} (default: save,live,postcopy,link)",
    )
    campaign.add_argument(
        "--points", metavar="GLOB", help="only these points, e.g. 'suspend:*' or 'controller/*'"
    )
    part = campaign.add_mutually_exclusive_group()
    part.add_argument(
        "--short", action="store_true", help="a fixed part that touches each point and action"
    )
    part.add_argument("--random", type=positive, metavar="N", help="N random plans of two faults")
    campaign.add_argument("--seed", type=count, metavar="S", help="repeats the plans of --random")
    campaign.add_argument(
        "--shard", type=_shard, metavar="K/N", help="only part K of N, which `faults merge` joins"
    )
    campaign.add_argument(
        "--jobs",
        type=positive,
        metavar="J",
        help="runs at once (default: one per processor, or per thread of the cluster's workers)",
    )
    campaign.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on the workers of the Dask scheduler there, such as tcp://HOST:8786",
    )
    campaign.add_argument(
        "--out",
        metavar="DIR",
        default="fault-campaign",
        help="directory of the reports (default: fault-campaign)",
    )
    _add_timelines(campaign)
    campaign.add_argument("--resume", action="store_true", help="continue the campaign in DIR")
    campaign.add_argument(
        "--again", action="store_true", help="with --resume: also repeat runs that did not hold"
    )
    campaign.add_argument(
        "--memory", type=guest_size, metavar="SIZE", help="memory of the guests (default: 4M)"
    )
    campaign.add_argument("--workload", choices=WORKLOADS)

    merge = command(
        "merge", "fault_merge:merge", "make one campaign, with its reports, of its shards"
    )
    merge.add_argument(
        "shards", metavar="DIR", nargs="+", help="what `campaign --shard K/N --out DIR` has written"
    )
    merge.add_argument(
        "--out", metavar="DIR", required=True, help="directory of the campaign and its reports"
    )
    _add_timelines(merge)


def _add_timelines(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timelines",
        choices=("wrong", "all"),
        default="wrong",
        help="of which runs the report links a timeline: of those that do not hold (the default), "
        "or of all, each about 100 KiB",
    )


def _shard(text: str) -> Shard:
    from xen_save_helper.toolstack.campaign.shards import Shard

    try:
        return Shard.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
