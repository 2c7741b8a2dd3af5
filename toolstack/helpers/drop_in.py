"""Where our own helper is installed, for another toolstack to start."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors.own_programs import own_program

COMMAND: Final = "xen-save-helper"


def drop_in_path() -> Path:
    """The program's path. Raises FileNotFoundError that says where it was looked for."""
    return own_program(COMMAND)
