"""Ends a helper that does nothing any more.

Its waits for others have limits: for the other end of the stream, and for the controller's answer.
A helper that is itself stuck (a hypercall that never returns, a lock, a bug) would still hang for
ever, and libxl would wait for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable

from xen_save_helper.ipc_schema.channel.waits import LOOK, Patience, stood_still
from xen_save_helper.ipc_schema.hints import Final

_PR_SET_PDEATHSIG: Final = 1

_LAST_PART: Final = 4
"""The part of the limit that the error path has after the abort to show that it runs."""


def limit_of(stream_stall: float, answer_limit: float) -> float:
    """The watchdog's limit, given those of the two waits for others (in seconds, 0 for none):
    longer than either, so that a wait that is too long is reported as such."""
    return stream_stall + answer_limit if stream_stall and answer_limit else 0.0


class Watchdog:
    """Checks, in a thread of its own, that the helper shows itself `alive`.

    After `limit` seconds (0: no limit) without a sign it calls what `when_quiet` registered, if
    anything; if still no sign follows, it calls `hung`, in the thread, with a line for people. Time
    in which the process was stopped does not count; `take_stood_still` has it.
    """

    def __init__(self, limit: float, hung: Callable[[str], object]) -> None:
        self._limit = limit
        self._hung = hung
        self._quiet: Callable[[int, str], object] | None = None
        self._signs = 0
        self._stood_still = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """Start the thread, in which no signal is handled; to be called in the main thread."""
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def when_quiet(self, give_up: Callable[[int, str], object]) -> None:
        """Have `give_up` called, in the thread, with ETIMEDOUT and a line for people, first."""
        self._quiet = give_up

    def alive(self) -> None:
        """Show that something was done; may be called from any thread."""
        self._signs += 1

    def take_stood_still(self) -> float:
        """The seconds that the process was stopped since the last call."""
        seconds, self._stood_still = self._stood_still, 0.0
        return seconds

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        try:
            self._look_out()
        except BaseException as bug:
            # Nothing else would end a stuck helper.
            self._hung(f"the watchdog failed: {bug!r}")

    def _look_out(self) -> None:
        reason = f"the helper has done nothing for {self._limit:g} s"
        seen, looked = self._signs, time.monotonic()
        patience = Patience(self._limit * (1 + 1 / _LAST_PART), looked)
        while not self._over.wait(wait := min(patience.wait, LOOK)):
            now = time.monotonic()
            self._stood_still += stood_still(wait, now - looked)
            looked = now
            if self._signs != seen:
                seen = self._signs
                patience.restart(now)
            elif patience.look(now):
                self._hung(reason)
                return
            elif self._limit and patience.spent >= self._limit and self._quiet is not None:
                self._quiet(errno.ETIMEDOUT, reason)


def wake_when_orphaned() -> None:
    """Have the kernel send SIGCONT when the parent dies (prctl(2), PR_SET_PDEATHSIG): a stopped
    helper then continues, sees that its controller is gone, and ends; nobody else would end it. A
    running one ignores SIGCONT. Raises OSError."""
    die_with_parent(signal.SIGCONT)


def die_with_parent(number: int) -> None:
    """Have the kernel send this signal when the parent dies; 0 for none. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0):
        errnoval = ctypes.get_errno()
        raise OSError(errnoval, f"PR_SET_PDEATHSIG: {os.strerror(errnoval)}")
