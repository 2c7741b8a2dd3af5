"""Limits of waits in the event loop, counting only time in which this process ran
(`channel.waits`)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from xen_save_helper.ipc_schema.channel.waits import Patience


def never() -> bool:
    """Nobody can say whether the other side is stopped."""
    return False


class Timer:
    """Calls `over` once, after `limit` seconds in which this process ran and `stopped` did not say
    that the process it waits for is stopped itself."""

    def __init__(
        self, limit: float, over: Callable[[], object], stopped: Callable[[], bool] = never
    ) -> None:
        self._over = over
        self._stopped = stopped
        self._loop = asyncio.get_running_loop()
        self._patience = Patience(limit, self._loop.time())
        self._handle = self._loop.call_later(self._patience.wait, self._look)

    def cancel(self) -> None:
        self._handle.cancel()

    def restart(self) -> None:
        """Count from zero again."""
        self._handle.cancel()
        self._patience.restart(self._loop.time())
        self._handle = self._loop.call_later(self._patience.wait, self._look)

    def _look(self) -> None:
        if self._patience.look(self._loop.time(), counts=not self._stopped()):
            self._over()
        else:
            self._handle = self._loop.call_later(self._patience.wait, self._look)


@contextlib.asynccontextmanager
async def patience(limit: float, stopped: Callable[[], bool] = never) -> AsyncIterator[None]:
    """`asyncio.timeout` that counts time as a `Timer` does. Raises TimeoutError."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as scope:
        timer = Timer(limit, lambda: scope.reschedule(loop.time()), stopped)
        try:
            yield
        finally:
            timer.cancel()
