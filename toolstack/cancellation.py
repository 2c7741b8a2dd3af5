"""What an operation makes of a cancellation: it ends in order, and only then it goes on.

asyncio's contract is that a cancelled call raises CancelledError in the end, and that each
`Task.cancel` stays counted (`Task.cancelling`) for whoever made it: `asyncio.timeout`, a TaskGroup,
`asyncio.run` after a ^C. So the exception that is raised is the one that came, of asyncio's own
class: Python 3.11's `asyncio.timeout` takes no subclass for its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from xen_save_helper.toolstack.rules import arguments

_T = TypeVar("_T")


def not_told(_result: object) -> None:
    """For a caller that does not want to know."""


class OperationTask(asyncio.Task[_T]):
    """A task within an operation, which nothing but the operation cancels.

    The end of `asyncio.run`, and what is like it, cancels all tasks there are, while the loop
    stands. The caller's is among them: through that one the operation learns of it, and ends its
    own in their order.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        return self.get_loop().is_running() and super().cancel(msg)


def spawn(work: Coroutine[Any, Any, _T]) -> OperationTask[_T]:
    """Run `work` as a task within an operation."""
    return OperationTask(work, loop=asyncio.get_running_loop())


async def absorb(work: Coroutine[Any, Any, _T], abort: Callable[[], object]) -> _T:
    """What `work` returns or raises. A cancellation does not reach it: each calls `abort`, which
    must have it come to its end or lead it there, and is gone then."""
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
    """What `work` returns. Each cancellation cancels `work`, which makes of it what it must, and
    is waited for; the first one goes on then, also where `work` came to a good end.

    `on_end` is called with what `work` returns. An error that it raises is the cause of the
    CancelledError where it tells of an end (OSError, EOFError, ValueError); any other is a fault of
    the program, and outranks it. Raises TypeError before `work` begins for what is no function.
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
    """What a public operation, whose arguments but `on_end` are bound, returns or raises by itself,
    where it was cancelled, too: for a caller that has nothing left to do but to say so."""
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
    """Await `work` to its end, whatever cancellation comes meanwhile; it must have limits."""
    return await absorb(work, lambda: None)
