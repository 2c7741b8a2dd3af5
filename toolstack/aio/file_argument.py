"""The meaning of a FILE on the command line: a path, or a descriptor that is already open.

`-` is stdin or stdout. `/dev/stdin`, `/dev/stdout`, `/dev/fd/N`, `/proc/self/fd/N` and any link to
one of them mean the descriptor itself, at its position: opening such a path on Linux would open its
file again, at the start and without O_APPEND, and would fail for a socket.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from pathlib import Path
from typing import Final

STDIN: Final = 0
STDOUT: Final = 1
STDERR: Final = 2

_NAMES: Final = {STDIN: "stdin", STDOUT: "stdout", STDERR: "stderr"}
_MOST_LINKS: Final = 40
"""The number of symbolic links that the kernel follows."""


def file_of(text: str, standard: int) -> Path | int:
    """Return the path or the descriptor that `text` names; `-` is `standard`.

    Raises ValueError for an empty name, IsADirectoryError for one that ends in a slash, OSError
    (EBADF) for a descriptor that this process was not given.
    """
    if not text:
        raise ValueError(f"FILE is empty; `-` is {_NAMES[standard]}")
    if text.endswith("/"):
        raise IsADirectoryError(
            errno.EISDIR, "a name that ends in / is a directory; name a file", text
        )
    number = standard if text == "-" else _descriptor(text)
    if number is None:
        return Path(text)
    if not _given(number):
        raise OSError(errno.EBADF, f"{name_of(number)} is not open")
    return number


def name_of(file: Path | int) -> str:
    """The name by which people know `file`."""
    return _NAMES.get(file, f"/dev/fd/{file}") if isinstance(file, int) else str(file)


def check_direction(fd: int, *, writing: bool) -> None:
    """Raise OSError (EBADF) if `fd` is not open for this direction."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == (os.O_RDONLY if writing else os.O_WRONLY):
        way = "writing" if writing else "reading"
        raise OSError(errno.EBADF, f"it is not open for {way}")


def refuse_terminal(fd: int, *, writing: bool) -> None:
    """Raise OSError (EINVAL) if `fd` is a terminal: a stream is not for one."""
    if os.isatty(fd):
        way = "redirect or pipe it" if writing else "redirect or pipe a stream into it"
        raise OSError(errno.EINVAL, f"it is a terminal; {way}, or name a file")


def _given(fd: int) -> bool:
    """Whether it was open when this process started: what the process opens itself is not
    inheritable."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _descriptor(path: str) -> int | None:
    own = re.compile(rf"/proc/{os.getpid()}(/task/\d+)?/fd")
    for _ in range(_MOST_LINKS):
        directory, name = os.path.split(os.path.abspath(path))
        if name.isdecimal() and own.fullmatch(os.path.realpath(directory)):
            return int(name)
        try:
            path = os.path.join(directory, os.readlink(path))
        except OSError:
            return None  # not a link
    return None
