"""Where the rig keeps what takes long to make, and one maker of a thing at a time."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
CACHE: Final = REPOSITORY / ".cache" / "xen"


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock `name`; other processes of this checkout wait for it. The makers that take it
    have time limits, so this wait has an end."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
