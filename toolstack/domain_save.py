"""Save a domain: libxl_domain_suspend and, of the postcopy series, libxl_domain_live_migrate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ipc_schema.errors import Error
from ipc_schema.messages import CATALOGUE, INTEGER_RANGES, Kind, Operation, XCFlags
from toolstack.context import Context
from toolstack.helper_request import LIBXENGUEST, PipeHelper
from toolstack.operation import end_in_order
from toolstack.precopy_policy import DEFAULT_PRECOPY, MemoryStrategy, PrecopyLimits
from toolstack.save_helper import HelperRequest
from toolstack.save_operation import SaveOperation, SaveParameters
from toolstack.save_result import PostcopyTransitioned, SaveResult

__all__ = [
    "SUSPEND_DEBUG",
    "SUSPEND_LIVE",
    "MemoryStrategy",
    "PostcopyTransitioned",
    "PrecopyLimits",
    "SaveResult",
    "domain_live_migrate",
    "domain_suspend",
]

SUSPEND_DEBUG: Final = int(XCFlags.DEBUG)
"""LIBXL_SUSPEND_DEBUG: after a live save all memory is sent again, to be compared."""
SUSPEND_LIVE: Final = int(XCFlags.LIVE)
"""LIBXL_SUSPEND_LIVE: the domain runs while its memory is sent."""


def _nothing() -> None:
    """For a caller that does not want to know."""


async def domain_suspend(
    ctx: Context, domid: int, fd: int, flags: int = 0, *, bandwidth: int = 0
) -> SaveResult:
    """Save the domain into `fd` and leave it suspended. `flags` are SUSPEND_*, `bandwidth` limits
    the stream (octets a second, 0 for none). Never makes a postcopy transition.

    Returns in all cases but a fault of the program; a cancellation aborts the save in order and
    returns ERROR_ABORTED. Never resumes the domain: that is the caller's part.
    """
    request = HelperRequest(
        Operation.SAVE,
        domid,
        fd,
        xcflags=flags,
        hypervisor=ctx.hypervisor,
        engine=ctx.engine,
        bandwidth=bandwidth,
    )
    parameters = SaveParameters(request, MemoryStrategy.DEFAULT, DEFAULT_PRECOPY, _nothing)
    return await _save(ctx, parameters)


async def domain_live_migrate(
    ctx: Context,
    domid: int,
    send_fd: int,
    flags: int,
    recv_fd: int,
    memory_strategy: MemoryStrategy = MemoryStrategy.DEFAULT,
    *,
    precopy: PrecopyLimits = DEFAULT_PRECOPY,
    bandwidth: int = 0,
    on_transition: Callable[[], None] = _nothing,
) -> SaveResult:
    """Save the running domain into `send_fd` while it runs (SUSPEND_LIVE is forced); `recv_fd` is
    the back channel, without which the rc is ERROR_INVAL. Otherwise as `domain_suspend`.

    With MemoryStrategy.POSTCOPY the domain is handed over before all its memory is.
    `on_transition` is called right before the first octet of POSTCOPY_TRANSITION_END can be
    written; where it raises, the transition fails without having begun.
    """
    if recv_fd < 0:
        return _refused("a live migration needs its back channel, recv_fd")
    request = HelperRequest(
        Operation.SAVE,
        domid,
        send_fd,
        back_fd=recv_fd,
        xcflags=flags | SUSPEND_LIVE,
        hypervisor=ctx.hypervisor,
        engine=ctx.engine,
        bandwidth=bandwidth,
        postcopy=memory_strategy is MemoryStrategy.POSTCOPY,
    )
    return await _save(ctx, SaveParameters(request, memory_strategy, precopy, on_transition))


async def _save(ctx: Context, parameters: SaveParameters) -> SaveResult:
    request = parameters.request
    if request.xcflags & ~(SUSPEND_LIVE | SUSPEND_DEBUG):
        return _refused(f"flags {request.xcflags:#x}: there are SUSPEND_LIVE and SUSPEND_DEBUG")
    least, most = INTEGER_RANGES[Kind.ULONG]
    if not least <= request.bandwidth <= most:
        return _refused(f"a bandwidth of {request.bandwidth} octets a second: 0 to {most}, please")
    if problem := beyond_helper(
        ctx, postcopy=request.postcopy, bandwidth=request.bandwidth, precopy=parameters.precopy
    ):
        return _refused(problem)
    operation = SaveOperation(ctx, parameters)
    return await end_in_order(operation.run(), operation.cancel)


def beyond_helper(ctx: Context, *, postcopy: bool, bandwidth: int, precopy: PrecopyLimits) -> str:
    """What is asked for and the helper cannot do; empty where it can do all of it. Better said than
    left undone in silence."""
    program, engine = ctx.program, ctx.engine
    if engine == LIBXENGUEST:
        if postcopy:
            return "libxenguest has no postcopy"
        if bandwidth:
            return "libxenguest has no bandwidth limit"
    if (
        isinstance(program, PipeHelper)
        and program.dialect not in CATALOGUE["precopy_policy"].numbers
        and precopy != DEFAULT_PRECOPY
    ):
        return f"{program.path} asks for no precopy policy: it goes by libxc's own"
    return ""


def _refused(reason: str) -> SaveResult:
    return SaveResult(Error.INVAL, PostcopyTransitioned.NEVER, None, reason, suspended=False)
