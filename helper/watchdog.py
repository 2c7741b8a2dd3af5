"""An end to a helper that does nothing any more.

Whoever the helper waits for has a limit: the other end of the stream, and the controller's answer.
A helper that is stuck in itself (a hypercall that never returns, a lock, a fault of its own) would
still wait for ever, as libxl does for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Final

from xen_save_helper.ipc_schema.channel.waits import LOOK, Patience, stood_still

_PR_SET_PDEATHSIG: Final = 1

_LAST_PART: Final = 4
"""After the abort the error path has this part of the limit to show that it runs."""


def limit_of(stream_stall: float, answer_limit: float) -> float:
    """The limit that goes with those of the two waits for others (in seconds, 0 for none): longer
    than either, so that the one that is over has its own say first."""
    return stream_stall + answer_limit if stream_stall and answer_limit else 0.0


class Watchdog:
    """Looks, from a thread of its own, whether the helper shows that it is `alive`.

    After `limit` seconds without a sign it does what it was told to do `when_quiet`, if it was told
    yet; if that is followed by none either, `hung` is called with a line for people, in the thread.
    A `limit` of 0 is none. A process that was stopped is not blamed for that time, of which
    `take_stood_still` tells.
    """

    def __init__(self, limit: float, hung: Callable[[str], object]) -> None:
        self._limit = limit
        self._hung = hung
        self._quiet: Callable[[int, str], object] | None = None
        self._signs = 0
        self._stood_still = 0.0
        self._over = threading.Event()

    def start(self) -> None:
        """From the main thread; no signal is handled in the watchdog's."""
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def when_quiet(self, give_up: Callable[[int, str], object]) -> None:
        """Have `give_up` called, in the thread, with ETIMEDOUT and a line for people."""
        self._quiet = give_up

    def alive(self) -> None:
        """Something was done: from any thread."""
        self._signs += 1

    def take_stood_still(self) -> float:
        """For how many seconds the process has stood still since this was asked last."""
        seconds, self._stood_still = self._stood_still, 0.0
        return seconds

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        try:
            self._look_out()
        except BaseException as bug:
            # Nothing else would end a helper that is stuck.
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
    """Have the kernel send SIGCONT when the parent dies (prctl(2), PR_SET_PDEATHSIG): a helper that
    is stopped then goes on, sees that its controller has gone, and ends; nobody else would end it.
    To one that runs, SIGCONT does nothing. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGCONT), 0, 0, 0):
        errnoval = ctypes.get_errno()
        raise OSError(errnoval, f"PR_SET_PDEATHSIG: {os.strerror(errnoval)}")
