"""The target of a save, and all that can be known of it before the guest is suspended.

A file appears under its name only when it is whole: a temporary file beside it is written, brought
to the disk and renamed. It takes on the mode, owner and extended attributes of the file that it
replaces; a symbolic link stays, and its target is replaced; another hard link to the replaced file
keeps the old contents. What cannot be replaced (a pipe, a device, an open descriptor) is written to
directly.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import Final, Self

from xen_save_helper.toolstack.aio import descriptors, disk_room, file_argument
from xen_save_helper.toolstack.aio.file_argument import name_of
from xen_save_helper.toolstack.aio.patience import patience
from xen_save_helper.toolstack.aio.pipe_drain import drained

OPEN_POLL: Final = 0.05

_SPECIAL: Final = ("/dev", "/proc")
_LONGEST_KEPT: Final = 200
"""Bytes of a file's name that its partial file's name keeps: with the rest, at most 255."""
_NOT_OURS: Final = frozenset({"security.capability", "security.evm", "security.ima"})
"""Extended attributes about a file's contents."""


class SaveTarget:
    """The target of a save, to be written to through `fd` once it is open. `partial` is the
    temporary file, None if there is none. As a context it closes, and removes what is not whole."""

    def __init__(self, name: str, partial: Path | None) -> None:
        self.name = name
        self.partial = partial
        self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    async def open(self, need: int, limit: float) -> None:
        """Open it, with room for `need` bytes. Raises OSError, which says what is in the way, and
        TimeoutError if nobody opens a FIFO for reading within `limit` seconds."""
        raise NotImplementedError

    async def finish(self, limit: float) -> None:
        """Bring all that was written to where it stays. Raises OSError, and TimeoutError if the
        reader of a pipe takes nothing for `limit` seconds."""
        raise NotImplementedError


def save_target(file: Path | int) -> SaveTarget:
    """The target for a path or an open descriptor; nothing is touched before its `open`.

    Raises OSError for what is seen not to work: a directory, a socket, a mount point, a directory
    that cannot be written, a terminal, …
    """
    if isinstance(file, int):
        file_argument.check_direction(file, writing=True)
        file_argument.refuse_terminal(file, writing=True)
        return _Direct(file)
    try:
        mode = file.stat().st_mode
    except FileNotFoundError:
        mode = stat.S_IFREG
    path = file.resolve()
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, "it is a directory; name a file in it")
    if stat.S_ISSOCK(mode):
        raise OSError(
            errno.ENXIO,
            "it is a socket; pipe the save into a program that connects to it: `save NAME - | …`",
        )
    if _among_devices(path):
        if not path.exists():
            raise OSError(
                errno.ENOENT, f"it does not exist, and {path.parent} is not for new files"
            )
        return _Direct(file)
    if not stat.S_ISREG(mode):
        return _Direct(file)
    _check_directory(path.parent)
    if path.exists():
        _check_replaceable(path)
    return _Replacing(file, path)


class _Direct(SaveTarget):
    """A pipe, a device, or a descriptor that we were given, at its position."""

    def __init__(self, file: Path | int) -> None:
        super().__init__(name_of(file), None)
        self._file = file

    async def open(self, need: int, limit: float) -> None:
        if isinstance(self._file, int):
            self.fd = descriptors.duplicate(self._file)
        else:
            self.fd = await _open_existing(self._file, limit)
            file_argument.refuse_terminal(self.fd, writing=True)
        disk_room.check(self.fd, need)

    async def finish(self, limit: float) -> None:
        mode = os.fstat(self.fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
            os.fsync(self.fd)
        else:
            await drained(self.fd, limit, self.name)


class _Replacing(SaveTarget):
    """A file that is new, or replaces an existing one."""

    def __init__(self, file: Path, path: Path) -> None:
        kept = os.fsdecode(os.fsencode(path.name)[:_LONGEST_KEPT])
        unique = f".{kept}.{os.getpid()}-{secrets.token_hex(4)}.partial"
        super().__init__(name_of(file), path.with_name(unique))
        self._path = path
        self._directory = -1

    def __exit__(self, *of: object) -> None:
        super().__exit__(*of)
        if self._directory >= 0:
            os.close(self._directory)

    async def open(self, need: int, limit: float) -> None:
        assert self.partial is not None
        self._directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.fd = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise OSError(
                error.errno, f"no file can be made in {self._path.parent}: {error.strerror}"
            ) from error
        if self._path.exists():
            _take_after(self.fd, self._path)
        disk_room.check(self.fd, need)
        await disk_room.reserve(self.fd, need)

    async def finish(self, limit: float) -> None:
        assert self.partial is not None
        # Give back what was reserved beyond the end.
        os.ftruncate(self.fd, os.fstat(self.fd).st_size)
        os.fsync(self.fd)
        self.partial.replace(self._path)
        self.partial = None
        os.fsync(self._directory)


def _among_devices(path: Path) -> bool:
    """Whether it is on the filesystem of /dev or /proc, where no file is made; another one below
    them, such as /dev/shm, does not count."""
    try:
        device = path.parent.stat().st_dev
    except OSError:
        return False
    return any(
        path.is_relative_to(directory) and device == os.stat(directory).st_dev
        for directory in _SPECIAL
    )


def _check_directory(directory: Path) -> None:
    """Raise OSError if it is seen that no file can be made in `directory`."""
    if not directory.exists():
        raise OSError(errno.ENOENT, f"there is no directory {directory}; make it first")
    if not directory.is_dir():
        raise OSError(errno.ENOTDIR, f"{directory} is not a directory")
    if os.statvfs(directory).f_flag & os.ST_RDONLY:
        raise OSError(
            errno.EROFS, f"{directory} is on a filesystem that is mounted read-only; save elsewhere"
        )
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise OSError(
            errno.EACCES,
            f"user {os.geteuid()} cannot make files in {directory}; change its mode, or save "
            "elsewhere",
        )


def _check_replaceable(path: Path) -> None:
    """Raise OSError if it is seen that rename(2) cannot put another file in the place of `path`."""
    file, directory = path.stat(), path.parent.stat()
    if os.fsencode(path) in disk_room.mount_points():
        raise OSError(
            errno.EBUSY,
            "it is a mount point, which cannot be replaced; save to another name, or into what is "
            f"mounted there: `save NAME - >{path}`",
        )
    if not os.access(path, os.W_OK, effective_ids=True):
        raise OSError(
            errno.EACCES,
            f"user {os.geteuid()} cannot write it; change its mode, or save to another name",
        )
    sticky = directory.st_mode & stat.S_ISVTX
    if sticky and os.geteuid() not in {0, file.st_uid, directory.st_uid}:
        raise OSError(
            errno.EPERM,
            f"only user {file.st_uid} may replace it, since {path.parent} has its sticky bit set; "
            "save to another name",
        )
    if disk_room.append_only(path) or disk_room.append_only(path.parent):
        raise OSError(
            errno.EPERM,
            "it cannot be replaced, since it or its directory is append-only; `chattr -a` ends "
            "that, or save to another name",
        )


def _take_after(fd: int, path: Path) -> None:
    """Give the new file `fd` the owner, mode and extended attributes (ACL, label) of `path`. Raises
    OSError if that fails."""
    old, new = path.stat(), os.fstat(fd)
    try:
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.fchown(fd, old.st_uid, old.st_gid)
        os.fchmod(fd, stat.S_IMODE(old.st_mode))
        for name in _attributes(path):
            value = os.getxattr(path, name)
            if name not in _attributes(fd) or os.getxattr(fd, name) != value:
                os.setxattr(fd, name, value)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.strerror(error.errno or 0)}: the new file cannot have the owner "
            f"({old.st_uid}:{old.st_gid}), mode and attributes of the old one; remove that first, "
            "or save to another name",
        ) from error


def _attributes(file: Path | int) -> list[str]:
    try:
        return [name for name in os.listxattr(file) if name not in _NOT_OURS]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []
        raise


async def _open_existing(path: Path, limit: float) -> int:
    """Open for writing; a FIFO waits for its reader. The descriptor is blocking."""
    try:
        async with patience(limit):
            while True:
                try:
                    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    await asyncio.sleep(OPEN_POLL)
                else:
                    os.set_blocking(fd, True)
                    return fd
    except TimeoutError:
        raise TimeoutError(f"nobody has opened the pipe for reading within {limit:g} s") from None
