"""An end to a helper that does nothing any more.

Whoever the helper waits for has a limit: the other end of the stream, and the controller's answer.
A helper that is stuck in itself (a hypercall that never returns, a lock, a fault of its own) would
still wait for ever, and its heartbeats, which libzmq's own thread sends, would go on. libxl waits
for such a helper without a limit.
"""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from helper.abort import Abort

_LOOKS: Final = 16
"""How often within the limit it is looked at."""
_LAST_PART: Final = 4
"""After the abort the error path has this part of the limit to show that it runs."""


def limit_of(stream_stall: float, answer_limit: float) -> float:
    """The limit that goes with those of the two waits for others (in seconds, 0 for none): longer
    than either, so that the one that is over has its own say first."""
    return stream_stall + answer_limit if stream_stall and answer_limit else 0.0


class Watchdog:
    """Looks, from a thread of its own, whether the helper shows that it is `alive`.

    After `limit` seconds without a sign the `abort` is asked for (ETIMEDOUT), if there is one yet;
    where that is followed by none either, `hung` is called with a line for people, in the thread.
    A `limit` of 0 is none. A process that was stopped is not blamed for that time.
    """

    def __init__(self, limit: float, hung: Callable[[str], object]) -> None:
        self.abort: Abort | None = None
        self._limit = limit
        self._hung = hung
        self._signs = 0
        self._over = threading.Event()

    def start(self) -> None:
        """From the main thread; no signal is handled in the watchdog's."""
        if not self._limit:
            return
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)

    def alive(self) -> None:
        """Something was done: from any thread."""
        self._signs += 1

    def stop(self) -> None:
        self._over.set()

    def _watch(self) -> None:
        try:
            self._look_out()
        except BaseException as bug:
            # Nothing else would end a helper that is stuck.
            self._hung(f"the watchdog failed: {bug!r}")

    def _look_out(self) -> None:
        interval = self._limit / _LOOKS
        reason = f"the helper has done nothing for {self._limit:g} s"
        seen, quiet, looked = self._signs, 0.0, time.monotonic()
        while not self._over.wait(interval):
            now = time.monotonic()
            quiet += min(now - looked, 2 * interval)
            looked = now
            if self._signs != seen:
                seen, quiet = self._signs, 0.0
            elif quiet >= self._limit * (1 + 1 / _LAST_PART):
                self._hung(reason)
                return
            elif quiet >= self._limit and self.abort is not None:
                self.abort.request(errno.ETIMEDOUT, reason)
