"""Processes, told by what they have in their environment (/proc)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def having(entry: str) -> Iterator[int]:
    """Yield the pid of each process with a `NAME=VALUE` in its environment that starts with
    `entry`."""
    wanted = entry.encode()
    for name in os.listdir("/proc"):
        # A process may be another user's, or have just gone.
        with contextlib.suppress(PermissionError, FileNotFoundError, ProcessLookupError):
            if name.isdecimal():
                environment = Path("/proc", name, "environ").read_bytes()
                if any(one.startswith(wanted) for one in environment.split(b"\0")):
                    yield int(name)
