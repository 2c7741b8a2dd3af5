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


_VALUED: Final = re.compile(r'"(--[\w-]+)(?=\[.*\]:)')
"""A long option of a zsh script that has a value, which may be in the next word or after a `=`; for
zsh's `_arguments`, the `=` says so."""


_REGISTERED: Final = re.compile(r"^complete (.*) -F (\w+) (\S+)$", re.MULTILINE)
_JOINED: Final = r"""
# bash makes three words of --option=value, and the functions above take the second for the value.
\2_joined() {
  local -a words=()
  local index cword=0
  for ((index = 0; index < ${#COMP_WORDS[@]}; index++)); do
    if [[ ${COMP_WORDS[index]} != "=" || ${COMP_WORDS[index - 1]} != --* ]]; then
      words+=("${COMP_WORDS[index]}")
    elif ((index == COMP_CWORD)); then
      words+=("")
    fi
    ((index == COMP_CWORD)) && cword=$((${#words[@]} - 1))
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$cword
  \2 "$@"
}

complete \1 -F \2_joined \3"""


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
    text = f"{shtab.complete(parser, shell=shell).rstrip()}\n"
    if shell == "zsh":
        text = _VALUED.sub(r'"\1=', text)
    if shell == "bash":
        text = _REGISTERED.sub(_JOINED, text)
    return text
