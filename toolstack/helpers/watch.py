"""Sees that a helper at work shows a sign of life: it says something, or octets move.

libxl waits for a silent helper without a limit. Whoever a helper waits for has a limit of its own
(see `HelperLaunch.silence`); one that is stuck in itself has none. One that is stopped is not dead
(see `standstill.ChildWatch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.toolstack.helpers.wait_log import STREAM, WaitLog

_NOTABLE: Final = 64
"""Octets that one which gets on has moved."""


class Watched(Protocol):
    """What is looked at: `helper_process.HelperProcess`."""

    def stopped(self) -> bool: ...

    def octets(self) -> int: ...

    def nudge(self) -> None: ...


class HelperWatch:
    """Calls `over`, once, with a line for people when `process` has shown no sign of life for
    `silence` seconds (0: it may be silent for ever) in which it was not stopped.

    While `waits` says that a callback waits for its answer the helper may be silent: the answer
    has its own limit. What is silent for long is `told` of (see `WaitLog`).
    """

    def __init__(
        self,
        process: Watched,
        *,
        silence: float,
        waits: Callable[[], bool],
        told: Callable[[str], object],
        over: Callable[[str], object],
    ) -> None:
        self._process = process
        self._silence = silence
        self._waits = waits
        self._over = over
        self._wait_log = WaitLog(STREAM, told)
        self._loop = asyncio.get_running_loop()
        self._heard = False
        self._octets = process.octets()
        self._nudged = False
        self._patience = Patience(silence, self._loop.time())
        self._timer = self._loop.call_later(self._patience.wait, self._look)

    def heard(self) -> None:
        """The helper has said something."""
        self._heard = True

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._is_silent():
            self._over(f"the helper has said nothing, and moved no octet, for {self._silence:g} s")
        else:
            self._timer = self._loop.call_later(self._patience.wait, self._look)

    def _is_silent(self) -> bool:
        """Whether it is over."""
        now = self._loop.time()
        if self._lives():
            self._nudged = False
            self._wait_log.look(0.0)
            self._patience.restart(now)
            return False
        over = self._patience.look(now, counts=not self._process.stopped())
        self._wait_log.look(self._patience.spent)
        if not over:
            return False
        if not self._nudged:
            # One long write may be slow, not stuck: interrupted, it says how far it has come.
            self._nudged = True
            self._process.nudge()
            return False
        return True

    def _lives(self) -> bool:
        """Whether there was a sign of life since the last one."""
        octets = self._process.octets()
        # One of its own children that has ended takes its count away.
        moved = abs(octets - self._octets) >= _NOTABLE
        if moved:
            self._octets = octets
        heard, self._heard = self._heard, False
        return heard or moved or self._waits()
