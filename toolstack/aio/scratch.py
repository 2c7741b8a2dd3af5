"""Directories that go with the process that made them, also where that was killed.

Each is locked for as long as it is needed. What a killed process left is unlocked, and the next
one that makes such a directory takes it away.
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
    """There is nothing but files."""


class ScratchDirectory:
    """A new directory in `parent` (by default that for temporary files) that only its owner can
    enter. `clear` ends what a dead process's directory stands for, before it is removed.

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
        """Take the directory away, with all that is in it. Again: without effect."""
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
            continue  # another user's, in use, or gone by now
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
