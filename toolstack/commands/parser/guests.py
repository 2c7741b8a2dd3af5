"""The commands for the guests of a host."""

from __future__ import annotations

from xen_save_helper.toolstack.commands.common import count, guest_size, size
from xen_save_helper.toolstack.commands.parser.adding import Adder
from xen_save_helper.toolstack.commands.parser.shared import WORKLOADS


def add_guest_commands(command: Adder) -> None:
    init = command("init", "guests:init", "make a directory a simulated host, with no guests")
    init.add_argument("directory", nargs="?", metavar="DIR", help="instead of --host")
    init.add_argument(
        "--memory", type=guest_size, metavar="SIZE", help="what its guests may have together"
    )
    init.add_argument(
        "--lacks",
        metavar="FEATURE,...",
        help="CPU features that it does not have, as `inspect` names them",
    )

    create = command("create", "guests:create", "start a new simulated guest")
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--memory", type=size, default=256 << 20, metavar="SIZE", help="default: 256M"
    )
    create.add_argument("--workload", choices=WORKLOADS, default="random")
    create.add_argument("--rate", type=count, metavar="N", help="pages written per second")
    create.add_argument("--type", choices=("pvh", "hvm"), default="pvh")
    create.add_argument(
        "--behaviour",
        metavar="HOW",
        help="what it does when asked to suspend: normal, refuse, late:SECONDS or die",
    )

    shown = command("list", "guests:show_list", "show the host's guests")
    shown.add_argument("--name", action="store_true", help="only their names, one on each line")
    for name, text in (
        ("destroy", "end a guest"),
        ("pause", "stop a guest's vCPUs"),
        ("unpause", "let a paused guest run"),
    ):
        command(name, f"guests:{name}", text).add_argument("name", metavar="NAME")
    rename = command("rename", "guests:rename", "give a guest another name")
    rename.add_argument("name", metavar="NAME")
    rename.add_argument("new", metavar="NEW")
