"""Where our own helper is installed, for another toolstack to start."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Final

COMMAND: Final = "xen-save-helper"


def drop_in_path() -> Path:
    """The program's path. Raises FileNotFoundError that says where it was looked for."""
    directories = dict.fromkeys(
        (
            str(Path(sys.argv[0]).resolve().parent),
            str(Path(sys.executable).parent),
            sysconfig.get_path("scripts"),
            *os.environ.get("PATH", os.defpath).split(os.pathsep),
        )
    )
    found = shutil.which(COMMAND, path=os.pathsep.join(directories))
    if found is None:
        raise FileNotFoundError(
            errno.ENOENT, f"{COMMAND} is not installed in any of {', '.join(directories)}"
        )
    return Path(found).resolve()
