"""The board that a controller of ours has made for this helper."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

from xen_save_helper.ipc_schema.board import SIZE, VARIABLE, Board


def take_board(environ: Mapping[str, str], problem: Callable[[str], object]) -> Board | None:
    """Map the board whose descriptor is in the environment, and close that, or whose path is; None
    if there is none. One that cannot be used is a `problem`, a line for the log: it fails
    nothing."""
    given = environ.get(VARIABLE)
    if not given:
        return None
    import mmap

    try:
        fd = int(given) if given.isdecimal() else os.open(given, os.O_RDWR | os.O_CLOEXEC)
        try:
            memory = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
    except (OSError, ValueError) as bad:
        problem(f"{VARIABLE}={given}: {bad}: nobody can see or steer this")
        return None
    board = Board(memoryview(memory))
    if not board.is_ours:
        problem(f"{VARIABLE}={given}: it is of another version: nobody can see or steer this")
        return None
    return board
