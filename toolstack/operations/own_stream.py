"""An operation's own descriptors of its stream, whatever becomes of the caller's."""

from __future__ import annotations

import os
import socket
import stat
from types import TracebackType
from typing import Self

from xen_save_helper.toolstack.aio import descriptors


class OwnStream:
    """Duplicates of the descriptors of a stream and its back channel (-1 for none), closed with the
    context. They are above 2, and no child inherits them.

    After `shut` the other side of a socket sees the end at once, even if the caller keeps it open;
    that of a pipe sees it once the caller has closed its descriptor, too.
    """

    def __init__(self, stream_fd: int, back_fd: int = -1) -> None:
        """Raises OSError."""
        self.stream_fd = descriptors.duplicate(stream_fd)
        try:
            self.back_fd = descriptors.duplicate(back_fd)
        except BaseException:
            os.close(self.stream_fd)
            raise

    def shut(self) -> None:
        """End the stream in both directions. Only sockets are affected."""
        for fd in (self.stream_fd, self.back_fd):
            if fd < 0 or not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            borrowed = socket.socket(fileno=fd)
            try:
                borrowed.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other side has disconnected (ENOTCONN)
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
