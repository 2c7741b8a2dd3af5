"""What adds a command to a parser, and a parser that says what is wrong in one line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection
from typing import Any, NoReturn, cast

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.commands.parser.shared import add_json, add_quiet

Adder = Callable[[str, str, str], argparse.ArgumentParser]
"""(name, `module:function` that runs it, what it does) -> its parser."""


class _Version(argparse.Action):
    """Prints the version. argparse's own action needs it beforehand, which costs every command
    time."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"{parser.prog.split()[0]} {version()}")
        parser.exit()


class OneLineParser(argparse.ArgumentParser):
    """Reports a usage error in one line; argparse prints the usage as well. Has --version, as have
    the parsers of its commands."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.add_argument("--version", action=_Version, nargs=0, help="print it and exit")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see `{self.prog} --help`\n")


class Commands:
    """The commands of a parser; only one of them if `only` is its name."""

    def __init__(self, parser: argparse.ArgumentParser, only: str = "") -> None:
        self._added = parser.add_subparsers(metavar="COMMAND", required=True)
        self._only = only

    def add(self, name: str, text: str) -> argparse.ArgumentParser:
        """The parser of a command, which says what it does in `text`."""
        if self._only not in ("", name):
            return cast(argparse.ArgumentParser, _Unasked())
        return self._added.add_parser(name, help=text, description=text)

    @property
    def names(self) -> Collection[str]:
        return self._added.choices


class _Unasked:
    """Takes the options of a command that was not asked for: to make its parser takes time."""

    def __call__(self, *_: object, **__: object) -> _Unasked:
        return self

    def __getattr__(self, _: str) -> _Unasked:
        return self


def add_group(commands: Commands, name: str, text: str) -> Adder:
    """Add a command that has commands of its own, each with --json; returns what adds one."""
    group = commands.add(name, text)
    those = group.add_subparsers(metavar="WHAT", required=True)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = those.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        add_json(added)
        add_quiet(added)
        return added

    return command
