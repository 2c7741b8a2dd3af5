"""Temporary directories that disappear with their process, even if it was killed.

Each is locked as long as it is in use. One that a killed process left is unlocked, and the next
process that makes such a directory removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self


def _nothing(_path: Path) -> None:
    """Clear nothing: the directory has only files."""


class ScratchDirectory:
    """A new directory in `parent` (by default, the directory for temporary files) that only its
    owner can enter. `clear` ends what belongs to a dead process's directory before that is removed.

    Raises OSError.
    """

    def __init__(
        self,
        prefix: str,
        parent: Path | None = None,
        clear: Callable[[Path], None] = _nothing,
    ) -> None:
        sweep(prefix, parent, clear)
        self.path, self._lock = _make_locked(prefix, parent or Path(tempfile.gettempdir()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Remove the directory and all that is in it, if that has not been done yet."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def sweep(
    prefix: str, parent: Path | None = None, clear: Callable[[Path], None] = _nothing
) -> None:
    """Remove the directories of processes that are dead."""
    for path in (parent or Path(tempfile.gettempdir())).glob(f"{prefix}*"):
        try:
            lock = _lock(path)
        except OSError:
            continue  # another user's, in use, or already gone
        try:
            clear(path)
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(lock)


def _make_locked(prefix: str, parent: Path) -> tuple[Path, int]:
    while True:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        try:
            return path, _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process swept it before it was locked


def _lock(path: Path) -> int:
    """Lock the directory `path`; returns the descriptor that holds the lock.

    Raises BlockingIOError if it is locked, FileNotFoundError if it is gone, PermissionError if it
    is another user's.
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
