"""The command line of `xen-toolstack`: its commands, and the options of each.

Each command names the function that carries it out (`module:function`), which `main` imports.
"""

from __future__ import annotations

import argparse
from typing import Final

from xen_save_helper.toolstack.commands.parser.adding import Commands, OneLineParser
from xen_save_helper.toolstack.commands.parser.control import add_control_commands
from xen_save_helper.toolstack.commands.parser.evacuation import add_evacuation_command
from xen_save_helper.toolstack.commands.parser.faults import add_fault_commands
from xen_save_helper.toolstack.commands.parser.files import add_file_commands
from xen_save_helper.toolstack.commands.parser.guests import add_guest_commands
from xen_save_helper.toolstack.commands.parser.migration import add_migration_commands
from xen_save_helper.toolstack.commands.parser.postcopy import add_postcopy_commands
from xen_save_helper.toolstack.commands.parser.shared import ADD_SHARED, SHARED, add_quiet
from xen_save_helper.toolstack.commands.parser.shell import add_shell_commands
from xen_save_helper.toolstack.commands.parser.timeline import add_timeline_command

EXIT_CODES: Final = """\
0 success; 1 failed (after migrate and demo, the guest runs at the source); 2 usage;
3 failed after the postcopy transition: the guest is left suspended at the source;
4 undefined: the link was lost after GO, look at both ends; 5 the guest itself died;
after evacuate, that of the guest that fared worst"""


def make_parser(only: str = "") -> argparse.ArgumentParser:
    """The parser of all commands, or of one alone if `only` is its name; `arguments.run` names the
    one that was given."""
    parser = OneLineParser(
        prog="xen-toolstack",
        description="Run, save, restore and migrate guests.",
        epilog=f"exit codes: {EXIT_CODES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = Commands(parser, only)

    def command(name: str, run: str, text: str) -> argparse.ArgumentParser:
        added = commands.add(name, text)
        added.set_defaults(run=run, json=False)
        add_quiet(added)
        for option in SHARED[name]:
            ADD_SHARED[option](added)
        return added

    add_guest_commands(command)
    add_file_commands(command)
    add_migration_commands(command)
    add_timeline_command(command)
    add_control_commands(command)
    add_evacuation_command(command)
    add_postcopy_commands(commands)
    add_fault_commands(commands)
    add_shell_commands(command)
    return parser if commands.names else make_parser()
