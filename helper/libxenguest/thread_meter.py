"""Measures how many bytes libxc has moved: it does not say, but most kernels count per thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from xen_save_helper.ipc_schema.hints import Final

_COUNTERS: Final = "/proc/thread-self/io"
_LONGEST: Final = 512


class ThreadMeter:
    """Bytes that the constructing thread has read or written since, in system calls that have
    returned (`/proc/thread-self/io`, proc(5)); any thread may ask. A kernel without
    CONFIG_TASK_IO_ACCOUNTING does not count: then `counts` is false, and all figures are 0.
    """

    def __init__(self, *, reading: bool) -> None:
        self._field = b"rchar: " if reading else b"wchar: "
        self._fd = -1
        try:
            self._fd = os.open(_COUNTERS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            pass  # see `counts`
        self._aside = 0
        self._start = self._count()

    @property
    def counts(self) -> bool:
        return self._fd >= 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def moved(self) -> int:
        """All bytes; this grows whenever the thread makes progress."""
        return self._count() - self._start

    def of_stream(self) -> int:
        """The stream's bytes: all but those moved `aside`. Only for the thread itself."""
        return self.moved() - self._aside

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do not count what the thread moves in here as the stream's."""
        before = self._count()
        try:
            yield
        finally:
            self._aside += self._count() - before

    def _count(self) -> int:
        if self._fd < 0:
            return 0
        for line in os.pread(self._fd, _LONGEST, 0).splitlines():
            if line.startswith(self._field):
                return int(line.removeprefix(self._field))
        raise AssertionError(f"{_COUNTERS} has no {self._field!r}")
