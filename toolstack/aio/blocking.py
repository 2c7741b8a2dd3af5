"""Blocking calls beside the event loop, with a limit to each wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from xen_save_helper.toolstack.aio.patience import patience

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def call(limit: float, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Call `function(*args, **kwargs)` in a thread of its own. Raises what it raises, and
    TimeoutError after `limit` seconds (0: no limit).

    The call cannot be undone: it may still have its effect after a timeout or cancellation. Unlike
    those of `asyncio.to_thread` its thread is a daemon, so a call that never returns does not keep
    the process alive.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def report(put: Callable[[], None]) -> None:
        if not future.done():
            put()

    def run() -> None:
        put: Callable[[], None]
        try:
            put = partial(future.set_result, function(*args, **kwargs))
        except Exception as error:
            put = partial(future.set_exception, error)
        try:
            loop.call_soon_threadsafe(report, put)
        except RuntimeError:
            pass  # the loop is closed: the caller gave up long ago

    name = getattr(function, "__name__", "call")
    threading.Thread(target=run, name=f"blocking {name}", daemon=True).start()
    try:
        async with patience(limit):
            return await future
    except TimeoutError:
        if future.done() and not future.cancelled():
            raise
        raise TimeoutError(f"{name} has not returned for {limit:g} s") from None
