"""Log lines about a long wait for the other side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from typing import Final

from xen_save_helper.ipc_schema.channel.waits import LongWait, Patience

STREAM: Final = "the stream has stood still"
READY: Final = "the receiver has not said that it is ready"
REPORT: Final = "the receiver has not said that the guest runs there"


class WaitLog:
    """Says how long `what` has lasted, and when the other side goes on (see `LongWait`)."""

    def __init__(self, what: str, tell: Callable[[str], object]) -> None:
        def lasts(quiet: float) -> bool:
            tell(f"{what} for {quiet:.0f} s: waiting for the other side")
            return True

        def over(quiet: float) -> bool:
            tell(f"the other side goes on after {quiet:.0f} s")
            return True

        self.look = LongWait(lasts, over).look


@contextlib.contextmanager
def telling_of(what: str, tell: Callable[[str], object]) -> Iterator[None]:
    """Log the wait while the context lasts. Leave it as soon as the other side goes on, or by an
    exception. Needs a running asyncio loop."""
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
