"""The command inspect: shows a stream as a table for people or as JSON."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.toolstack.aio.file_argument import STDIN, file_of, name_of
from xen_save_helper.toolstack.commands.common import complain, show
from xen_save_helper.toolstack.inspect.foreign_formats import NotAStreamError
from xen_save_helper.toolstack.inspect.summary import Summary
from xen_save_helper.toolstack.inspect.walk import StreamEntry
from xen_save_helper.toolstack.inspect.walk import inspect as walk
from xen_save_helper.toolstack.xl.outcome import ExitCode
from xen_save_helper.toolstack.xl.stream_input import open_stream

_OFFSET: Final = 12
_LAYER: Final = 5
_RECORD: Final = 28
"""Columns for a record's name and length together: a long name never has a long body."""
_INDENT: Final = _OFFSET + 1 + _LAYER + 1 + _RECORD + 2
_SIZES: Final = frozenset({"octets", "config", "xml"})
_LIST_INDENT: Final = " " * (_OFFSET + 1 + _LAYER + 1)
_LIST_WIDTH: Final = 100
_NARROWEST: Final = 20
"""The fewest columns for the contents, however narrow the terminal is."""


def inspect(arguments: argparse.Namespace) -> int:
    """Show one line (with --json, one object in a list) for each record, up to a broken one."""
    named = file_of(arguments.file, STDIN)
    summary = Summary()
    entries: list[StreamEntry] = []
    table = _Table()
    problem = ""
    with open(open_stream(named), "rb") as file:
        try:
            for entry in walk(file, summary):
                if arguments.json:
                    entries.append(entry)
                else:
                    table.show(entry)
        except NotAStreamError as error:
            problem = error.advice(named, "inspect")
        except DecodeError as error:
            problem = f"{name_of(named)}: {error}"
    found = {
        "entries": [asdict(entry) for entry in entries],
        "summary": summary.as_dict(),
        "error": problem or None,
    }
    code = show(arguments, found, lambda: _show_summary(summary), ExitCode.SUCCESS)
    if problem:
        complain(arguments, problem)
        return ExitCode.FAILED
    return code


class _Table:
    """Prints a head, and a line for each entry; on a terminal long lines are wrapped."""

    def __init__(self) -> None:
        self._begun = False
        self._round = 1
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None

    def show(self, entry: StreamEntry) -> None:
        if not self._begun:
            self._begun = True
            self._print("OFFSET", "LAYER", "RECORD", "LENGTH", "CONTENTS")
        number = entry.summary.get("round", self._round)
        if number != self._round:
            self._round = number
            self._print("", "", f"round {number}", "", "")
        self._print(
            f"{entry.offset:#0{_OFFSET}x}", entry.layer, entry.name, f"{entry.length}", text(entry)
        )
        for value in entry.summary.values():
            if isinstance(value, list):
                self._list(value)

    def _list(self, values: Sequence[object]) -> None:
        """Print a list under its entry, wrapped."""
        for line in textwrap.wrap(
            _printable(" ".join(map(str, values))),
            self._width or _LIST_WIDTH,
            initial_indent=_LIST_INDENT,
            subsequent_indent=_LIST_INDENT,
            break_on_hyphens=False,
        ):
            print(line)

    def _print(self, offset: str, layer: str, record: str, length: str, contents: str) -> None:
        # The rare layer with a longer name takes columns from the record.
        left = f"{layer:{_LAYER}} {record} "
        left += length.rjust(_LAYER + 1 + _RECORD - len(left))
        line = f"{offset:{_OFFSET}} {left}"
        if self._width is None or len(line) + 2 + len(contents) <= self._width:
            print(f"{line}  {contents}".rstrip())
            return
        # Break lines only after commas.
        items = contents.replace(" ", "\xa0").replace(",\xa0", ", ")
        parts = textwrap.wrap(items, max(_NARROWEST, self._width - _INDENT))
        for index, part in enumerate(parts):
            before = f"{line}  " if index == 0 else " " * _INDENT
            print(before + part.replace("\xa0", " "))


def text(entry: StreamEntry) -> str:
    """The contents of an entry, for people; its sizes are left out, since the length is shown."""
    summary = {name: value for name, value in entry.summary.items() if name not in _SIZES}
    summary.pop("round", None)
    if "types" in summary:
        return _pages(summary)
    guest = summary.pop("name", None)
    parts = [] if guest is None else [f"guest {guest}"]
    if not summary.get("legacy", True):
        del summary["legacy"]
    parts += [f"{name.replace('_', ' ')} {_value(value)}" for name, value in summary.items()]
    return _printable(", ".join(parts))


def _pages(summary: Mapping[str, Any]) -> str:
    """`1022 NOTAB, 2 L1TAB, pfn 0-1023`: how many of which types, and between which pfns."""
    types = ", ".join(f"{count} {name}" for name, count in summary["types"].items())
    lowest, highest = summary["lowest_pfn"], summary["highest_pfn"]
    return f"{types}, pfn {lowest}" + (f"-{highest}" if highest != lowest else "")


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_value(inner)}" for name, inner in value.items()) + ")"
    if isinstance(value, list):
        return str(len(value))  # the values follow below
    return str(value)


def _printable(line: str) -> str:
    """A line without control characters: anybody may have chosen the names in a stream."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in line
    )


def _show_summary(summary: Summary) -> None:
    """Print the figures, if there were any records."""
    if not summary.records:
        return
    print()
    print(f"{'COUNT':>15}  OF")
    for count, what in _figures(summary):
        print(f"{count:>15,}  {what}")


def _figures(summary: Summary) -> Iterator[tuple[int, str]]:
    figures = summary.as_dict()
    records = figures.pop("records")
    yield figures.pop("octets"), "bytes"
    yield sum(records.values()), "records and headers"
    for name, count in records.items():
        if count > 1:
            yield count, f"of them {name}"
    for name, count in figures.items():
        if count and (name, count) != ("rounds", 1):
            yield count, name.replace("_", " ")
