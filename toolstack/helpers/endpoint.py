"""The endpoint of a helper's controller: a socket in a directory that only its owner can enter.

Free of ZeroMQ: commands that start no helper clear up, too.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from typing import Final

from xen_save_helper.toolstack.aio.scratch import ScratchDirectory, sweep

_PREFIX: Final = "xen-save-helper-"
_SOCKET: Final = "controller"
_LONGEST_PATH: Final = 107
"""Bytes of sockaddr_un's sun_path, without the NUL."""


class Endpoint:
    """One endpoint, which disappears with its process. Raises OSError."""

    def __init__(self) -> None:
        self._directory = ScratchDirectory(_PREFIX, _runtime_directory())
        self.uri = f"ipc://{self._directory.path / _SOCKET}"

    def remove(self) -> None:
        """Remove it, if that has not been done yet."""
        self._directory.remove()


def sweep_endpoints() -> None:
    """Remove the endpoints of controllers that were killed."""
    sweep(_PREFIX, _runtime_directory())


def _runtime_directory() -> Path:
    """The first of the usual directories in which a socket's path is short enough."""
    usual = (os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp")
    longest = _LONGEST_PATH - len(f"/{_PREFIX}12345678/{_SOCKET}")
    for path in usual:
        if os.path.isdir(path) and len(os.fsencode(path)) <= longest:
            return Path(path)
    raise OSError(errno.ENAMETOOLONG, f"a socket's path would be too long in {', '.join(usual)}")
