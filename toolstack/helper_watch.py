"""Sees that a helper at work shows a sign of life: it says something, or octets move.

libxl waits for a silent helper without a limit. Whoever a helper waits for has a limit of its own
(see `HelperLaunch.silence`); one that is stuck in itself has none. On ZeroMQ its heartbeats, which
libzmq's own thread sends, go on; libxl's pipes carry none, so there it is also looked whether a
signal has stopped the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

_LOOKS: Final = 16
"""How often within the limit it is looked at."""
_LONGEST_INTERVAL: Final = 10.0
"""Seconds between two looks, where no limit makes them more frequent."""
_NOTABLE: Final = 64
"""Octets that one which gets on has moved."""


class Watched(Protocol):
    """What is looked at: `helper_process.HelperProcess`."""

    def stopped(self) -> bool: ...

    def octets(self) -> int: ...

    def nudge(self) -> None: ...


class HelperWatch:
    """Calls `over`, once, with a line for people when `process` has shown no sign of life for
    `silence` seconds (0: it may be silent for ever), or was stopped for `stopped` seconds (None:
    that is not looked for).

    While `waits` says that a callback waits for its answer the helper may be silent: the answer
    has its own limit. A time in which this process was stopped itself is not counted.
    """

    def __init__(
        self,
        process: Watched,
        *,
        silence: float,
        stopped: float | None,
        waits: Callable[[], bool],
        over: Callable[[str], object],
    ) -> None:
        self._process = process
        self._silence = silence
        self._stopped = stopped
        self._waits = waits
        self._over = over
        self._loop = asyncio.get_running_loop()
        self._interval = silence / _LOOKS if silence else _LONGEST_INTERVAL
        if stopped is not None:
            self._interval = min(self._interval, stopped / 4)
        self._heard = False
        self._octets = process.octets()
        self._nudged = False
        self._quiet = 0.0
        self._still = 0.0
        self._was_stopped = False
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._interval, self._look)

    def heard(self) -> None:
        """The helper has said something."""
        self._heard = True

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        passed = min(now - self._looked, 2 * self._interval)
        self._looked = now
        if reason := self._reason(passed):
            self._over(reason)
        else:
            self._timer = self._loop.call_later(self._interval, self._look)

    def _reason(self, passed: float) -> str:
        """Why it is over, empty where it is not; `passed` seconds after the last look."""
        if self._stopped is not None:
            is_stopped = self._process.stopped()
            self._still = self._still + passed if is_stopped and self._was_stopped else 0.0
            self._was_stopped = is_stopped
            if self._still >= self._stopped:
                return f"the helper has been stopped for {self._stopped:g} s"
        if self._lives():
            self._quiet, self._nudged = 0.0, False
            return ""
        self._quiet += passed
        if not self._silence or self._quiet < self._silence:
            return ""
        if not self._nudged:
            # One long write may be slow, not stuck: interrupted, it says how far it has come.
            self._nudged = True
            self._process.nudge()
            return ""
        return f"the helper has said nothing, and moved no octet, for {self._silence:g} s"

    def _lives(self) -> bool:
        """Whether there was a sign of life since the last one."""
        octets = self._process.octets()
        # One of its own children that has ended takes its count away.
        moved = abs(octets - self._octets) >= _NOTABLE
        if moved:
            self._octets = octets
        heard, self._heard = self._heard, False
        return heard or moved or self._waits()
