"""What becomes of a helper whose parent dies, or is stopped."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

from xen_save_helper.ipc_schema.channel.waits import is_stopped

_PR_SET_PDEATHSIG: Final = 1


def wake_when_orphaned() -> None:
    """Have the kernel send SIGCONT when the parent dies (prctl(2), PR_SET_PDEATHSIG): a helper that
    is stopped then goes on, sees that its controller has gone, and ends; nobody else would end it.
    To one that runs, SIGCONT does nothing. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0):
        errnoval = ctypes.get_errno()
        raise OSError(errnoval, f"PR_SET_PDEATHSIG: {os.strerror(errnoval)}")


_PARENT: Final = os.getppid()


def controller_stands_still() -> bool:
    """Whether the process that has started us, a toolstack, is stopped: it is not dead, and what it
    owes us it owes when it goes on. Not to be asked where no limit hangs on it: the octets that are
    read here look like work to whoever watches us."""
    try:
        with open(f"/proc/{_PARENT}/stat", "rb") as file:
            return is_stopped(file.read())
    except OSError:
        return False  # it has gone
