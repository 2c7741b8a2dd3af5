"""What the arguments of a parser are completed with, told by their metavars: guests, files, hosts.

The names of guests come from the program itself, the one that is on the command line, for the host
that is named there or in XEN_TOOLSTACK_HOST.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, Final

Completer = dict[str, Any]
"""What shtab takes: a function's name for each shell, and under `preamble` its definition."""

FILE: Final[Completer] = {
    "bash": "_shtab_compgen_files",
    "zsh": "_files",
    "fish": "(__fish_complete_path (commandline -ct))",
}
DIRECTORY: Final[Completer] = {
    "bash": "_shtab_compgen_dirs",
    "zsh": "_files -/",
    "fish": "(__fish_complete_directories (commandline -ct))",
}

# A name may hold anything, so nothing here evaluates one.
_NAMES: Final = {
    "bash": """\
_xen_toolstack_names() {
  local word=$1 name index host=()
  shift
  for ((index = 1; index < COMP_CWORD; index++)); do
    if [[ ${COMP_WORDS[index]} == --host ]]; then
      host=(--host "${COMP_WORDS[index + 1]/#\\~\\//$HOME/}")
    fi
  done
  while IFS= read -r name; do
    [[ $name == "$word"* ]] && printf '%q\\n' "$name"
  done < <("${COMP_WORDS[0]/#\\~\\//$HOME/}" "$@" --name "${host[@]}" 2>/dev/null)
}
""",
    "zsh": """\
_xen_toolstack_names() {
  local index
  local -a host names
  for ((index = 2; index < CURRENT; index++)); do
    case ${words[index]} in
      --host) host=(--host "${(Q)words[index + 1]/#\\~\\//$HOME/}") ;;
      --host=*) host=(--host "${(Q)${words[index]#--host=}/#\\~\\//$HOME/}") ;;
    esac
  done
  names=("${(@f)$("${_comp_command1:-xen-toolstack}" "$@" --name $host 2>/dev/null)}")
  compadd -a names
}
""",
    "fish": """\
function __xen_toolstack_names
  set -l tokens (commandline -opc)
  set -l host
  for index in (seq 2 (count $tokens))
    switch $tokens[$index]
      case --host
        set host --host $tokens[(math $index + 1)]
      case '--host=*'
        set host --host (string replace -- --host= '' $tokens[$index])
    end
  end
  $tokens[1] $argv --name $host 2>/dev/null
end
""",
}


def _names(function: str, *command: str) -> Completer:
    words = " ".join(command)
    return {
        "bash": f"_{function}",
        "zsh": f"_{function}",
        "fish": f"(__{function})",
        "preamble": {
            "bash": f'{_NAMES["bash"]}\n_{function}() {{ _xen_toolstack_names "$1" {words}; }}\n',
            "zsh": f"{_NAMES['zsh']}\n_{function}() {{ _xen_toolstack_names {words} }}\n",
            "fish": f"{_NAMES['fish']}\n"
            f"function __{function}\n  __xen_toolstack_names {words}\nend\n",
        },
    }


GUESTS: Final = _names("xen_toolstack_guests", "list")
POSTCOPIES: Final = _names("xen_toolstack_postcopies", "postcopy", "list")

HOST: Final[Completer] = {
    "bash": "_xen_toolstack_dir_or_xen",
    "zsh": "_xen_toolstack_dir_or_xen",
    "fish": "(__xen_toolstack_dir_or_xen)",
    "preamble": {
        "bash": '_xen_toolstack_dir_or_xen() { compgen -d -- "$1"; compgen -W xen -- "$1"; }\n',
        "zsh": "_xen_toolstack_dir_or_xen() "
        '{ _alternative "hosts:host:(xen)" "directories:directory:_files -/" }\n',
        "fish": "function __xen_toolstack_dir_or_xen\n"
        "  echo xen\n  __fish_complete_directories (commandline -ct)\nend\n",
    },
}


def add_completers(parser: argparse.ArgumentParser) -> None:
    """Tell shtab what completes the arguments of a parser and of its commands."""
    for path, action in actions(parser):
        completer = completer_of(path, action)
        if completer is not None:
            action.complete = completer  # type: ignore[attr-defined]


def actions(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.Action]]:
    """Yield the arguments of a parser and of its commands, each with the command's words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from actions(command, (*path, name))
        else:
            yield path, action


def completer_of(path: tuple[str, ...], action: argparse.Action) -> Completer | None:
    """What completes an argument of the command `path`; None if nothing does, or choices do."""
    metavar = action.metavar if isinstance(action.metavar, str) else ""
    kinds = metavar.partition("[")[0].split("|")
    if action.choices:
        return None
    if "xen" in kinds:
        return HOST
    if "DIR" in kinds:
        return DIRECTORY
    if any(kind.lstrip("@").partition(".")[0] in {"FILE", "CONFIG", "PATH"} for kind in kinds):
        return FILE
    if metavar == "NAME" and not action.option_strings and path != ("create",):
        return POSTCOPIES if path[:1] == ("postcopy",) else GUESTS
    return None
