"""Cancellation of an operation: it ends in order, and only then raises CancelledError.

asyncio's contract is that a cancelled call raises CancelledError in the end, and that each
`Task.cancel` stays counted (`Task.cancelling`) for its caller: `asyncio.timeout`, a TaskGroup,
`asyncio.run` after a ^C. So the very exception that came is raised: the `asyncio.timeout` of Python
3.11 does not accept a subclass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from xen_save_helper.toolstack.rules import arguments

_T = TypeVar("_T")


def not_told(_result: object) -> None:
    """The default `on_end`, which does nothing."""


class OperationTask(asyncio.Task[_T]):
    """A task within an operation, which only the operation cancels.

    At its end `asyncio.run`, like others, cancels all tasks while the loop does not run. The
    caller's is among them: through that one the operation learns of it, and ends its own tasks in
    order.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        return self.get_loop().is_running() and super().cancel(msg)


def spawn(work: Coroutine[Any, Any, _T]) -> OperationTask[_T]:
    """Run `work` as a task within an operation."""
    return OperationTask(work, loop=asyncio.get_running_loop())


async def absorb(work: Coroutine[Any, Any, _T], abort: Callable[[], object]) -> _T:
    """Return or raise what `work` does. A cancellation does not reach `work`, and is not raised:
    each one calls `abort`, which must make `work` end."""
    task = spawn(work)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            abort()
    return task.result()


async def end_in_order(
    work: Coroutine[Any, Any, _T], on_end: Callable[[_T], object] = not_told
) -> _T:
    """Return what `work` returns. Each cancellation cancels `work`, which deals with it and is
    waited for; then the first one is raised, even if `work` has succeeded.

    `on_end` is called with the result of `work`. If `work` was cancelled and raises OSError,
    EOFError or ValueError, that error is the cause of the CancelledError; any other exception is a
    bug, and is raised instead. Raises TypeError, before `work` begins, if `on_end` is not a
    function.
    """
    try:
        arguments.function("on_end", on_end)
    except TypeError:
        work.close()
        raise
    task = spawn(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = cancelled or error
            task.cancel()
    try:
        result = task.result()
    except (OSError, EOFError, ValueError) as error:
        if cancelled is not None:
            raise cancelled from error
        raise
    on_end(result)
    if cancelled is not None:
        raise cancelled
    return result


async def told(operation: Callable[..., Coroutine[Any, Any, _T]]) -> _T:
    """Return or raise what a public operation would without the cancellation at its end, for a
    caller that only has to report it. All its arguments but `on_end` are bound."""
    ended: list[_T] = []
    try:
        return await operation(on_end=ended.append)
    except asyncio.CancelledError as error:
        if ended:
            return ended[0]
        if error.__cause__ is not None:
            raise error.__cause__ from None
        raise


async def uninterrupted(work: Coroutine[Any, Any, _T]) -> _T:
    """Await `work` to its end and ignore cancellations; it must have limits."""
    return await absorb(work, lambda: None)
