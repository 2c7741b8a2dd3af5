"""What a FILE on the command line means: a path, or a descriptor that is open already.

`-` is stdin or stdout. `/dev/stdin`, `/dev/stdout`, `/dev/fd/N`, `/proc/self/fd/N` and whatever
links there are the descriptor itself, at its position: to open such a path would open its file anew
on Linux, at the start and without O_APPEND, and a socket not at all.
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

_NAMES: Final = {STDIN: "stdin", STDOUT: "stdout", 2: "stderr"}
_MOST_LINKS: Final = 40
"""As many symbolic links as the kernel follows."""
_LOWEST_DUPLICATE: Final = 3
"""0, 1 and 2 are for the standard streams alone."""


def file_of(text: str, standard: int) -> Path | int:
    """The path, or the number of the descriptor, that `text` names; `-` is `standard`.

    Raises ValueError for an empty name, IsADirectoryError for one that ends in a slash, OSError
    (EBADF) for a descriptor that was not given to this process.
    """
    if not text:
        raise ValueError(f"the FILE has no name; `-` is {_NAMES[standard]}")
    if text.endswith("/"):
        raise IsADirectoryError(
            errno.EISDIR, "a name that ends in / is a directory's; name a file", text
        )
    number = standard if text == "-" else _descriptor(text)
    if number is None:
        return Path(text)
    if not _given(number):
        raise OSError(errno.EBADF, f"{name_of(number)} is not open")
    return number


def name_of(file: Path | int) -> str:
    """`file` as people know it."""
    return _NAMES.get(file, f"/dev/fd/{file}") if isinstance(file, int) else str(file)


def check_direction(fd: int, *, writing: bool) -> None:
    """Raises OSError (EBADF) where `fd` is not open for this direction."""
    mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == (os.O_RDONLY if writing else os.O_WRONLY):
        way = "writing" if writing else "reading"
        raise OSError(errno.EBADF, f"it is not open for {way}")


def refuse_terminal(fd: int, *, writing: bool) -> None:
    """A stream is not for a terminal. Raises OSError (EINVAL)."""
    if os.isatty(fd):
        way = "redirect or pipe it" if writing else "redirect or pipe a stream into it"
        raise OSError(errno.EINVAL, f"it is a terminal; {way}, or name a file")


def duplicate(fd: int) -> int:
    """Another descriptor of the same open file, which the caller closes."""
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST_DUPLICATE)


def _given(fd: int) -> bool:
    """Whether it was open when this process began: what it has opened itself since would not
    survive an exec(2)."""
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
            return None  # no link
    return None
