"""Where a helper finds its controller: a socket in a directory that only its owner can enter.

The directory is locked for as long as the controller may need it. What a killed controller left is
unlocked, and the next one takes it away.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

_PREFIX: Final = "xen-save-helper-"
_SOCKET: Final = "controller"


class Endpoint:
    """One endpoint, in $XDG_RUNTIME_DIR or the directory for temporary files. Raises OSError."""

    def __init__(self) -> None:
        parent = _parent()
        sweep(parent)
        self._directory, self._lock = _make_locked(parent)
        self.uri = f"ipc://{self._directory / _SOCKET}"

    def remove(self) -> None:
        """Take socket and directory away; nobody finds them any more. Again: without effect."""
        if self._lock >= 0:
            shutil.rmtree(self._directory, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(parent: Path | None = None) -> None:
    """Remove the endpoints of controllers that are dead."""
    for path in (parent or _parent()).glob(f"{_PREFIX}*"):
        try:
            lock = _lock(path)
        except OSError:
            continue  # another user's, in use, or gone by now
        try:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _make_locked(parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        try:
            return path, _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # another's sweep took it for a dead one's before it was locked


def _lock(path: Path) -> int:
    """The descriptor that holds the lock of directory `path`.

    Raises BlockingIOError where it is held, FileNotFoundError where the directory is gone,
    PermissionError for another user's.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_uid != os.geteuid():
            raise PermissionError(path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _parent() -> Path:
    """Where a socket's path is short."""
    path = os.environ.get("XDG_RUNTIME_DIR")
    return Path(path) if path and os.path.isdir(path) else Path(tempfile.gettempdir())
