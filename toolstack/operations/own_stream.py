"""A stream as an operation has it: by descriptors of its own, whatever becomes of the caller's."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from types import TracebackType
from typing import Self


class OwnStream:
    """Duplicates of a stream's descriptors, and of its back channel's (-1 for none), which are
    closed with the context. They are above 2, and no child inherits them.

    `shut` lets the other side of a socket see the end at once, also while the caller holds it open;
    of a pipe it sees that when the caller, too, has closed its descriptor.
    """

    def __init__(self, stream_fd: int, back_fd: int = -1) -> None:
        """Raises OSError."""
        self.stream_fd = _duplicate(stream_fd)
        try:
            self.back_fd = _duplicate(back_fd)
        except BaseException:
            os.close(self.stream_fd)
            raise

    def shut(self) -> None:
        """The stream is over, in both directions. Without effect on what is no socket."""
        for fd in (self.stream_fd, self.back_fd):
            if fd < 0 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            borrowed = socket.socket(fileno=fd)
            try:
                borrowed.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side has gone already (ENOTCONN)
            finally:
                borrowed.detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for fd in (self.stream_fd, self.back_fd):
            if fd >= 0:
                os.close(fd)


def _duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) if fd >= 0 else -1
