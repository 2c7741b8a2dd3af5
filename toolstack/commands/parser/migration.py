"""The commands of a migration."""

from __future__ import annotations

import argparse
from typing import Any

from xen_save_helper.toolstack.commands.common import count, guest_size, positive
from xen_save_helper.toolstack.commands.parser.adding import Adder
from xen_save_helper.toolstack.commands.parser.shared import WORKLOADS, add_bandwidth, add_sparse
from xen_save_helper.toolstack.commands.parser.timeline import add_timeline_option


def add_to(parser: argparse.ArgumentParser, **more: Any) -> None:
    """Add --to, with `more` arguments of argparse's."""
    parser.add_argument(
        "--to",
        required=True,
        metavar="DIR|COMMAND",
        help="a simulated host's directory, or a command that talks to a receiver, such as "
        "`ssh there xl migrate-receive` or `ssh there xen-toolstack receive`",
        **more,
    )


def add_migration_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a guest migrates."""
    parser.add_argument(
        "--postcopy", action="store_true", help="let the guest run before all its memory is there"
    )
    parser.add_argument(
        "--link",
        metavar="ADDRESS[:PORT]",
        default="",
        help="with --postcopy: an address of this host at which the destination fetches the last "
        "pages, over a connection of its own, which may break and come back",
    )
    rounds = parser.add_mutually_exclusive_group()
    rounds.add_argument(
        "--max-rounds",
        type=count,
        default=5,
        metavar="N",
        help="at most N rounds of precopy (default: 5)",
    )
    rounds.add_argument(
        "--abort-after",
        type=positive,
        metavar="ROUNDS",
        help="give up after so many rounds without convergence; the guest runs on here",
    )
    parser.add_argument(
        "--max-downtime",
        type=count,
        metavar="MS",
        help="end precopy once what is left takes no longer than this, at the measured rate; a "
        "postcopy sends as many of the guest's hottest pages ahead as that",
    )
    parser.add_argument(
        "--dirty-threshold",
        type=count,
        default=50,
        metavar="N",
        help="end precopy at N dirty pages (default: 50)",
    )
    add_sparse(parser)
    parser.add_argument(
        "-p", "--paused", action="store_true", help="leave the guest paused at the destination"
    )
    parser.add_argument(
        "--debug", action="store_true", help="send all memory again at the end, and compare it"
    )


def add_migration_commands(command: Adder) -> None:
    migrate = command("migrate", "migrate:migrate", "move a running guest to another host")
    migrate.add_argument("name", metavar="NAME")
    add_to(migrate)
    add_migration_options(migrate)
    add_bandwidth(migrate)
    add_timeline_option(migrate)
    migrate.add_argument(
        "-C",
        dest="config",
        metavar="FILE",
        help="a configuration to send instead of the guest's own: libxl's JSON",
    )

    receive = command("receive", "receive:receive", "receive a guest on stdin and stdout")
    receive.add_argument("-p", "--paused", action="store_true", help="do not let it run yet")
    receive.add_argument(
        "--from", dest="source", metavar="TEXT", default="the sender", help="a name for the sender"
    )

    recover = command(
        "recover", "recover:recover", "finish what a dead controller left in the middle"
    )
    recover.add_argument("name", metavar="NAME")
    way = recover.add_mutually_exclusive_group()
    way.add_argument(
        "--resume", action="store_true", help="resume it: I have looked, and it runs nowhere else"
    )
    way.add_argument(
        "--destroy", action="store_true", help="destroy it: I have looked, and it runs elsewhere"
    )

    demo = command("demo", "demo:demo", "migrate a running guest between two hosts made for it")
    demo.add_argument("--mode", choices=("stop-and-copy", "precopy", "postcopy"), default="precopy")
    demo.add_argument("--memory", type=guest_size, default=256 << 20, metavar="SIZE")
    demo.add_argument("--workload", choices=WORKLOADS, default="random")
    add_bandwidth(demo)
    add_timeline_option(demo)
