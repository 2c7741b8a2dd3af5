"""A trace in a file. If it cannot be written, the save goes on, and its log says so once."""

from __future__ import annotations

import os
from collections.abc import Callable

from xen_save_helper.ipc_schema.trace import Trace


def open_for_trace(path: str) -> int:
    """Open the file for appending. Raises OSError, also for a FIFO that nobody reads."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    # O_NONBLOCK for a FIFO: neither opening it nor writing to it may wait.
    return os.open(path, flags | os.O_NONBLOCK, 0o600)


def open_trace(path: str, process: str, problem: Callable[[str], object]) -> Trace:
    """The trace of `process`, appended to the file at `path`; none if that is empty. `problem` is
    called, at most once, if the file cannot be opened or written."""
    if not path:
        return Trace(process)
    try:
        fd = open_for_trace(path)
    except OSError as bad:
        problem(f"events file {path}: {bad.strerror}: there is no trace")
        return Trace(process)

    def ended(error: OSError) -> None:
        problem(f"events file {path}: {error.strerror}: the trace ends here")

    return Trace(process, lambda line: os.write(fd, line), ended)
