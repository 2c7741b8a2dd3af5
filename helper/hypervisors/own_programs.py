"""Where this package's own programs are installed, for another toolstack to start."""

from __future__ import annotations

import errno
import os
import sys

from xen_save_helper.ipc_schema.hints import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def own_program(command: str) -> Path:
    """The program's path. Raises FileNotFoundError that names the directories searched."""
    # Imported late: a restore needs them only to say that it is refused.
    import shutil
    import sysconfig
    from pathlib import Path

    directories = dict.fromkeys(
        (
            str(Path(sys.argv[0]).resolve().parent),
            str(Path(sys.executable).parent),
            sysconfig.get_path("scripts"),
            *os.environ.get("PATH", os.defpath).split(os.pathsep),
        )
    )
    found = shutil.which(command, path=os.pathsep.join(directories))
    if found is None:
        raise FileNotFoundError(
            errno.ENOENT, f"{command} is not installed in any of {', '.join(directories)}"
        )
    return Path(found).resolve()
