"""What is made once for all the workers of a run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The path `name` that `make` makes, a file or a directory, for the first worker that wants it.
    Where `make` fails, the next worker tries again."""
    run = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        run = run.parent
    with (run / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done, path = run / f"{name}.done", run / name
        if not done.exists():
            make(path)
            done.touch()
    return path
