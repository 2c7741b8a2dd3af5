"""The commands for guests in files."""

from __future__ import annotations

from xen_save_helper.toolstack.commands.parser.adding import Adder
from xen_save_helper.toolstack.commands.parser.shared import add_sparse


def add_file_commands(command: Adder) -> None:
    save = command("save", "files:save", "save a guest into a file, and end it")
    save.add_argument("name", metavar="NAME")
    save.add_argument("file", metavar="FILE", help="`-` is stdout")
    save.add_argument("-c", "--checkpoint", action="store_true", help="let the guest run on")
    save.add_argument("-p", "--paused", action="store_true", help="leave the guest paused")
    add_sparse(save)

    restore = command("restore", "files:restore", "restore a guest from a file")
    restore.add_argument("file", metavar="FILE", help="`-` is stdin")
    restore.add_argument("-p", "--paused", action="store_true", help="do not let it run yet")
    restore.add_argument("--name", metavar="NAME", help="instead of the one in the file")
    restore.add_argument(
        "-C",
        dest="config",
        metavar="CONFIG",
        help="a configuration to use instead of the one in the file: JSON, as `xl list -l` prints "
        "it",
    )

    inspect = command("inspect", "inspect:inspect", "show what is in a stream, record by record")
    inspect.add_argument("file", metavar="FILE", help="`-` is stdin")
