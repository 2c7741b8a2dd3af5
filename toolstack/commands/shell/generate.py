"""Writes the completion scripts and the man pages, each into the place below a prefix where Debian
looks for it. Needs shtab and argparse-manpage, which only a build has."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.commands.parser import EXIT_CODES, make_parser
from xen_save_helper.toolstack.commands.parser.shell import SHELLS
from xen_save_helper.toolstack.commands.shell.completers import add_completers
from xen_save_helper.toolstack.commands.shell.helper_parser import SECTIONS, make_helper_parser
from xen_save_helper.toolstack.commands.shell.manual import page
from xen_save_helper.toolstack.commands.shell.places import COMPLETIONS, MANUAL

_PROGRAMS: Final[Mapping[str, Callable[[], argparse.ArgumentParser]]] = {
    "xen-toolstack": make_parser,
    "xen-save-helper": make_helper_parser,
}
_MANUALS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "xen-toolstack": (
        "run, save, restore and migrate guests",
        {
            "EXIT STATUS": re.sub(r"(?:^|;\s)(\d) ", r"\n  \1  ", EXIT_CODES),
            "ENVIRONMENT": """\
  XEN_TOOLSTACK_HOST  the host, as --host names it
  NO_COLOR            if it is set, nothing is in colour""",
        },
    ),
    "xen-save-helper": ("save or restore one Xen domain for a toolstack", SECTIONS),
}
"""What the man pages have besides what the parsers say: what a program does, and sections."""


def generate(directory: Path, version: str) -> list[Path]:
    """Write all files below `directory`, as below a prefix such as /usr; returns their paths
    there."""
    written = []
    for program, make in _PROGRAMS.items():
        texts: dict[str, str] = {MANUAL.format(program): page(make(), *_MANUALS[program], version)}
        for shell in SHELLS:
            text = _completion(make(), shell)
            texts.update((place.format(program), text) for place in COMPLETIONS[shell])
        for place, text in texts.items():
            (directory / place).parent.mkdir(parents=True, exist_ok=True)
            (directory / place).write_text(text)
            written.append(Path(place))
    return written


def _completion(parser: argparse.ArgumentParser, shell: str) -> str:
    import shtab

    add_completers(parser)
    return f"{shtab.complete(parser, shell=shell).rstrip()}\n"
