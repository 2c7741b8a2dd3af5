"""Limits of waits, and which time counts towards them, on both sides of the split.

A limit counts the time in which the waiting process ran. A process that was stopped by a signal or
a debugger, or whose control group was frozen, missed what came meanwhile, and would find every
deadline passed when it continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from xen_save_helper.ipc_schema.hints import Final

LONGEST_WAIT: Final = 2_000_000.0
"""Seconds: 23 days. `poll` counts milliseconds in an int, and a longer wait would overflow it."""

LONGEST_LIMIT: Final = LONGEST_WAIT / 2
"""Seconds, for a limit of the controller: a helper is given sums of two."""

BUFFERED: Final = 16 << 20
"""Bytes that the pipes, sockets and ssh windows at both ends of a stream hold at most while its
receiver reads nothing (OpenSSH's window is 2 MiB, Linux's socket buffers grow to 4)."""

PERIOD: Final = 60.0
"""Seconds until the first line about a wait, and between one and the next."""

LOOK: Final = 0.25
"""Seconds between looks at whether a process stands still."""

_STEPS: Final = 16
_LONGEST_STEP: Final = 1.0
_COUNTED: Final = 2
"""Steps between two looks of a running process, at most."""
_TOLD_FROM: Final = 1.0


class Patience:
    """How much of `limit` seconds (0: no limit) is used up.

    The caller looks once in each step. What lies between two looks counts as two steps at most,
    since a process that is late for its look did not run. Times are those of a monotonic clock, in
    seconds.
    """

    def __init__(self, limit: float, now: float) -> None:
        self.spent = 0.0
        self._limit = limit or math.inf
        self._step = min(self._limit / _STEPS, _LONGEST_STEP)
        self._looked = now

    @property
    def wait(self) -> float:
        """Seconds until the next look."""
        left = self._limit - self.spent
        return min(self._step, left) if left > 0 else self._step

    def look(self, now: float, *, counts: bool = True) -> bool:
        """Whether the limit is used up. The time since the last look `counts` unless the process
        that is waited for was stopped itself."""
        if counts:
            self.spent += min(now - self._looked, _COUNTED * self._step)
        self._looked = now
        return self.spent >= self._limit

    def restart(self, now: float) -> None:
        """Start over: what was waited for has come, or a part of it."""
        self.spent, self._looked = 0.0, now


class LongWait:
    """Reports a wait for the other side: every `PERIOD`, and once when it is over. Waiting is not a
    failure, but waiting silently is.

    `lasts` and `over` are called with the seconds that it has lasted, and return whether it could
    be reported; if not, it is reported at the next look.
    """

    def __init__(self, lasts: Callable[[float], bool], over: Callable[[float], bool]) -> None:
        self._lasts = lasts
        self._over = over
        self._told = 0
        """Periods that were reported."""
        self._quiet = 0.0

    def look(self, quiet: float) -> None:
        """`quiet` is how many seconds the wait has lasted, 0 if there is none."""
        if self._told and quiet < self._quiet:
            if not self._over(self._quiet):
                return
            self._told = 0
        self._quiet = quiet
        if quiet >= (self._told + 1) * PERIOD and self._lasts(quiet):
            self._told = int(quiet // PERIOD)


def stood_still(planned: float, passed: float) -> float:
    """For how many seconds a process was stopped that meant to sleep for `planned` seconds and woke
    after `passed`; 0 if that is not worth reporting."""
    late = passed - planned
    return late if late >= _TOLD_FROM else 0.0


def is_stopped(stat: bytes) -> bool:
    """Whether a process is stopped by a signal or a debugger, given its proc_pid_stat(5)."""
    return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
