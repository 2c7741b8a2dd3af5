"""The cache for what takes the rig long to make. All checkouts of a user share it, and each thing
has one maker at a time; slots limit the number of machines to what this computer can run."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

REPOSITORY: Final = Path(__file__).parents[2]
_USERS_CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
CACHE: Final = _USERS_CACHE / "xen-save-helper" / "rig"

_MACHINE_BYTES: Final = 7 << 30


@contextmanager
def exclusive(name: str) -> Iterator[None]:
    """Hold the lock `name`, and wait for it if need be. The wait ends, since all makers have time
    limits."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A directory to make something in, for the holder of the lock `name`. Directories that killed
    makers left behind are removed first."""
    prefix = f"building-{name}-"
    # The random part of mkdtemp has eight characters. A longer rest belongs to another name.
    for stale in CACHE.glob(f"{prefix}????????"):
        shutil.rmtree(stale)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=prefix) as directory:
        yield Path(directory)


class Slot:
    """The right to run a machine. This computer can run a few at once, for all checkouts together.
    Its owner calls `release`."""

    def __init__(self, limit: float = 7200) -> None:
        """Wait for a free slot. Raises TimeoutError after `limit` seconds."""
        CACHE.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + limit
        told = False
        while (slot := _free_slot()) is None:
            if time.monotonic() >= end:
                raise TimeoutError(f"{slots()} machines of this rig are running, for {limit:g} s")
            if not told:
                print(f"tests.xen: waiting: {slots()} machines are running already", flush=True)
                told = True
            time.sleep(1)
        self._file = slot

    def release(self) -> None:
        self._file.close()


def slots() -> int:
    """The number of machines that this computer can run, at 7 GiB of memory and a processor
    each."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(os.cpu_count() or 1, memory // _MACHINE_BYTES))


def _free_slot() -> IO[str] | None:
    for number in range(slots()):
        file = open(CACHE / f"machine-{number}.lock", "w")  # noqa: SIM115 - as long as the slot
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
        else:
            return file
    return None
