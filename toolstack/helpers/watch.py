"""Watches that a helper at work shows signs of life: messages, or bytes that it moves.

libxl waits for a silent helper without a limit. Everything that a helper waits for has a limit (see
`HelperLaunch.silence`), but a helper that hangs has none. One that is stopped is not dead (see
`standstill.ChildWatch`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.toolstack.helpers.wait_log import STREAM, WaitLog

_NOTABLE: Final = 64
"""Bytes that count as progress."""


class Watched(Protocol):
    """The part of `process.HelperProcess` that is watched."""

    def stopped(self) -> bool: ...

    def bytes_moved(self) -> int: ...

    def nudge(self) -> None: ...


class HelperWatch:
    """Calls `over` once, with a line for people, when `process` has shown no sign of life for
    `silence` seconds in which it was not stopped (0: it may be silent for ever).

    The helper may be silent while `waits` says that a callback is outstanding: the answer has its
    own limit. `told` gets a line now and then during a long silence (see `WaitLog`).
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
        self._moved = process.bytes_moved()
        self._nudged = False
        self._patience = Patience(silence, self._loop.time())
        self._timer = self._loop.call_later(self._patience.wait, self._look)

    def heard(self) -> None:
        """A message came from the helper."""
        self._heard = True

    def cancel(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if self._is_silent():
            self._over(f"the helper has said nothing and moved no byte for {self._silence:g} s")
        else:
            self._timer = self._loop.call_later(self._patience.wait, self._look)

    def _is_silent(self) -> bool:
        """Whether the helper has been silent for too long."""
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
            # One long write may be slow, not stuck: interrupted, it shows how far it has got.
            self._nudged = True
            self._process.nudge()
            return False
        return True

    def _lives(self) -> bool:
        """Whether there has been a sign of life since the last look."""
        total = self._process.bytes_moved()
        # A child that has ended takes its count away.
        moved = abs(total - self._moved) >= _NOTABLE
        if moved:
            self._moved = total
        heard, self._heard = self._heard, False
        return heard or moved or self._waits()
