"""The command for shells."""

from __future__ import annotations

from typing import Final

from xen_save_helper.toolstack.commands.parser.adding import Adder

SHELLS: Final = ("bash", "zsh", "fish")


def add_shell_commands(command: Adder) -> None:
    completion = command(
        "completion",
        "completion:completion",
        "print the completion script of a shell that does not find it by itself",
    )
    completion.add_argument("shell", choices=SHELLS)
    completion.add_argument(
        "--of",
        choices=("xen-toolstack", "xen-save-helper"),
        default="xen-toolstack",
        help="the program that it completes (default: xen-toolstack)",
    )
