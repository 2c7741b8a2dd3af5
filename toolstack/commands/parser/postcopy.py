"""The commands of `postcopy`."""

from __future__ import annotations

import argparse

from xen_save_helper.toolstack.commands.common import positive
from xen_save_helper.toolstack.commands.parser.adding import Commands, add_group
from xen_save_helper.toolstack.commands.parser.shared import add_host


def add_postcopy_commands(
    commands: Commands,
) -> None:
    """Add the commands of `postcopy`."""
    text = (
        "see and steer what goes on after a postcopy under xl, or with `migrate --link`: page "
        "servers and pagers"
    )
    added = add_group(commands, "postcopy", text)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        parser = added(name, run, text)
        add_host(parser)
        return parser

    command("list", "postcopy:show_list", "show all of them")
    status = command(
        "status", "postcopy:show_status", "show those of a guest; fails if its pages are lost"
    )
    status.add_argument("name", metavar="NAME")
    wait = command(
        "wait", "postcopy:wait", "wait until all pages are in place; fails if they are lost"
    )
    wait.add_argument("names", metavar="NAME", nargs="*", help="default: all guests")
    wait.add_argument("--timeout", type=positive, metavar="SECONDS", help="fail after so long")
    reconnect = command(
        "reconnect",
        "postcopy:reconnect",
        "let a pager reach its page server at another address, or a page server listen there, too",
    )
    reconnect.add_argument("name", metavar="NAME")
    reconnect.add_argument("address", metavar="ADDRESS[:PORT]")
    abandon = command(
        "abandon", "postcopy:abandon", "end one of them, or forget one that has ended"
    )
    abandon.add_argument("name", metavar="NAME")
    abandon.add_argument(
        "--lose-the-guest", action="store_true", help="even if pages of it are still missing"
    )
