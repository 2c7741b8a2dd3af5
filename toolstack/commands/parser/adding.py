"""What adds a command to a parser, and a parser that says what is wrong in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from xen_save_helper.toolstack.commands.parser.shared import add_json

Adder = Callable[[str, str, str], argparse.ArgumentParser]
"""(name, `module:function` that runs it, what it does) -> its parser."""


class OneLineParser(argparse.ArgumentParser):
    """Reports a usage error in one line; argparse prints the usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


Commands: TypeAlias = "argparse._SubParsersAction[OneLineParser]"


def add_group(commands: Commands, name: str, text: str) -> Adder:
    """Add a command that has commands of its own, each with --json; returns what adds one."""
    group = commands.add_parser(name, help=text, description=text)
    those = group.add_subparsers(metavar="WHAT", required=True)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = those.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        add_json(added)
        return added

    return command
