"""Man pages, made from parsers by argparse-manpage."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from typing import Final

_ENTRY: Final = re.compile(r"  (\w+)(?:\s{2,}(.*))?")
_UNFOLDED: Final = "10000"
"""More columns than any usage takes."""


def page(
    parser: argparse.ArgumentParser, what: str, sections: Mapping[str, str], version: str
) -> str:
    """The man page of a program: `what` it does, in a line, and more `sections`, whose texts are as
    `section` takes them. It may change the parser."""
    from argparse_manpage.manpage import Manpage

    parser.epilog = None
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            parser._positionals.title = "commands"
            for command in action.choices.values():
                command.description = None  # it is the text in the list of commands, too
    with _unfolded():
        made = Manpage(parser, format="single-commands-section")
        made.description = what
        made.source = f"xen-save-helper {version}"
        made.manual = "Xen"
        # The same sources make the same page, whenever that is.
        since = os.environ.get("SOURCE_DATE_EPOCH")
        made.date = time.strftime("%Y-%m-%d", time.gmtime(int(since))) if since else ""
        for title, text in sections.items():
            made.add_section(title, "=", section(text))
        others = sorted({"xen-toolstack", "xen-save-helper", "xl"} - {parser.prog})
        made.add_section("SEE ALSO", "=", ",\n".join(f".BR {_escaped(one)} (1)" for one in others))
        # No even right margin, and no hyphens: most lines have words that must stay whole.
        title, rest = str(made).split("\n", 1)
        return f"{title}\n.nh\n.ad l\n{rest}"


def section(text: str) -> str:
    """The body of a section from a text for terminals: paragraphs, and entries `  NAME  text` whose
    further lines are farther in."""
    lines: list[str] = []
    inside = False
    for line in text.strip("\n").splitlines():
        if entry := _ENTRY.fullmatch(line):
            lines += [".TP", f".B {_escaped(entry[1])}"]
            inside = True
        elif inside and not line.startswith("    "):
            lines.append(".PP")
            inside = False
        words = entry[2] or "" if entry else line.strip()
        if words:
            lines.append(_escaped(words))
    return "\n".join(lines)


def _escaped(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


@contextlib.contextmanager
def _unfolded() -> Iterator[None]:
    """Have argparse leave the folding of a usage to man."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _UNFOLDED
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before
