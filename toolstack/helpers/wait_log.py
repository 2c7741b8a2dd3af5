"""What the log is told of a wait for the other side: to wait is no failure, to wait unsaid is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from xen_save_helper.ipc_schema.channel.waits import Patience

PERIOD: Final = 60.0
"""Seconds until the first line, and between two."""

STREAM: Final = "the stream has stood still"
READY: Final = "the receiver has not said that it is ready"


class WaitLog:
    """Says for how long `what` holds, each `PERIOD`, and once when the other side goes on."""

    def __init__(self, what: str, tell: Callable[[str], object]) -> None:
        self._what = what
        self._tell = tell
        self._told = 0
        """Periods that were told of."""
        self._quiet = 0.0

    def look(self, quiet: float) -> None:
        """`quiet`: for how many seconds it does; 0 where the other side goes on."""
        if self._told and quiet < self._quiet:
            self._told = 0
            self._tell(f"the other side goes on after {self._quiet:.0f} s")
        self._quiet = quiet
        if quiet >= (self._told + 1) * PERIOD:
            self._told = int(quiet // PERIOD)
            self._tell(f"{self._what} for {quiet:.0f} s: waiting for the other side")


@contextlib.contextmanager
def telling_of(what: str, tell: Callable[[str], object]) -> Iterator[None]:
    """For as long as it is entered `what` holds; it is left as soon as the other side goes on, or
    by an exception. Needs a running asyncio loop."""
    ticking = _Ticking(WaitLog(what, tell))
    try:
        yield
        ticking.log.look(0.0)
    finally:
        ticking.timer.cancel()


class _Ticking:
    def __init__(self, log: WaitLog) -> None:
        self.log = log
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(0, self._loop.time())
        self.timer = self._loop.call_later(self._patience.wait, self._look)

    def _look(self) -> None:
        self._patience.look(self._loop.time())
        self.log.look(self._patience.spent)
        self.timer = self._loop.call_later(self._patience.wait, self._look)
