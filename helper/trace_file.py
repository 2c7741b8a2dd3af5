"""The trace into a file. Whatever becomes of it, the save goes on, and its log says so once."""

from __future__ import annotations

import os
from collections.abc import Callable

from xen_save_helper.ipc_schema.trace import Trace


def open_for_trace(path: str) -> int:
    """The file, to be appended to. Raises OSError, also where it is a FIFO that nobody reads."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    # Of a FIFO: neither to be opened nor to be written is waited for.
    return os.open(path, flags | os.O_NONBLOCK, 0o600)


def open_trace(path: str, process: str, problem: Callable[[str], object]) -> Trace:
    """The trace of `process`, appended to the file at `path`, none where that is empty. `problem`
    is told, at most once, of a file that cannot be had or takes no more."""
    if not path:
        return Trace(process)
    try:
        fd = open_for_trace(path)
    except OSError as bad:
        problem(f"events file {path}: {bad.strerror}: there is no trace")
        return Trace(process)

    def ended(error: OSError) -> None:
        problem(f"events file {path}: {error.strerror}: it ends here")

    return Trace(process, lambda line: os.write(fd, line), ended)
