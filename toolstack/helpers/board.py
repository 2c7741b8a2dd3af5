"""The board of an operation: the helper inherits its descriptor, or opens its path."""

from __future__ import annotations

import mmap
import os

from xen_save_helper.ipc_schema.board import SIZE, Board


class SharedBoard(Board):
    """In shared memory, from the constructor to `close`. Raises OSError."""

    __slots__ = ("_memory", "_view", "fd")

    def __init__(self) -> None:
        self.fd = os.memfd_create("board", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, SIZE)
            self._memory = mmap.mmap(self.fd, SIZE)
        except BaseException:
            os.close(self.fd)
            raise
        self._view = memoryview(self._memory)
        super().__init__(self._view)

    @property
    def path(self) -> str:
        """For processes of the same user, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def close(self) -> None:
        for view in (self.ints, self.reals, self._view):
            view.release()
        self._memory.close()
        os.close(self.fd)
