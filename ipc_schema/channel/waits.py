"""How long a wait can be set to last, and what counts of it, on either side of the split.

A limit is measured in time in which the process that waits has run. One that was stopped by a
signal or a debugger, or whose control group was frozen, has heard nothing of what came meanwhile,
and finds every deadline passed when it goes on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

LONGEST_WAIT: Final = 2_000_000.0
"""Seconds: 23 days. `poll` counts milliseconds in an int, and a longer wait would overflow it."""

LONGEST_LIMIT: Final = LONGEST_WAIT / 2
"""Seconds: of a controller's limit. A helper is told sums of two."""

BUFFERED: Final = 16 << 20
"""Bytes that pipes, sockets and ssh's windows, at both ends of a stream, swallow at most while its
receiver reads nothing (OpenSSH's window is 2 MiB, Linux's socket buffers grow to 4)."""

PERIOD: Final = 60.0
"""Seconds until the first line about a wait, and between two."""

LOOK: Final = 0.25
"""Seconds between looks at whether a process stands still."""

_STEPS: Final = 16
_LONGEST_STEP: Final = 1.0
_COUNTED: Final = 2
"""Steps that pass between two looks of a process that runs, at most."""
_TOLD_FROM: Final = 1.0


class Patience:
    """How much of `limit` seconds (0: no limit) is used up.

    Looked at in steps; what lies between two looks counts as two of them at most, since a process
    that is late for its look did not run. Times are those of a monotonic clock, in seconds.
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
        """Whether the limit is over. What has passed since the last look does not count where
        whoever is waited for stood still himself."""
        if counts:
            self.spent += min(now - self._looked, _COUNTED * self._step)
        self._looked = now
        return self.spent >= self._limit

    def restart(self, now: float) -> None:
        """What was waited for has come, or a part of it."""
        self.spent, self._looked = 0.0, now


class LongWait:
    """When a wait for the other side is told of: each `PERIOD`, and once when it is over. To wait
    is no failure, to wait unsaid is.

    `lasts` and `over` are called with the seconds that it has lasted. They say whether it could be
    told; if not, it is at the next look.
    """

    def __init__(self, lasts: Callable[[float], bool], over: Callable[[float], bool]) -> None:
        self._lasts = lasts
        self._over = over
        self._told = 0
        """Periods that were told of."""
        self._quiet = 0.0

    def look(self, quiet: float) -> None:
        """`quiet`: for how many seconds it lasts; 0 if there is none."""
        if self._told and quiet < self._quiet:
            if not self._over(self._quiet):
                return
            self._told = 0
        self._quiet = quiet
        if quiet >= (self._told + 1) * PERIOD and self._lasts(quiet):
            self._told = int(quiet // PERIOD)


def stood_still(planned: float, passed: float) -> float:
    """For how many seconds a process stood still that wanted to sleep for `planned` and woke after
    `passed` seconds; 0 where that is not worth a word."""
    late = passed - planned
    return late if late >= _TOLD_FROM else 0.0


def is_stopped(stat: bytes) -> bool:
    """Whether a process is stopped, by a signal or a debugger, by its proc_pid_stat(5)."""
    return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])
