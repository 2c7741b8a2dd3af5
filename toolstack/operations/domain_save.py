"""Save a domain: libxl_domain_suspend and, of the postcopy series, libxl_domain_live_migrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from xen_save_helper.ipc_schema.channel.helper_request import Engine, HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags
from xen_save_helper.ipc_schema.channel.precopy_rule import LIBXL_PRECOPY, PrecopyLimits
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.aio import descriptors
from xen_save_helper.toolstack.cancellation import absorb, end_in_order, not_told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import PipeHelper, asks_for_policy
from xen_save_helper.toolstack.operations.domain_lock import DomainBusyError, domain_lock
from xen_save_helper.toolstack.operations.own_stream import OwnStream
from xen_save_helper.toolstack.operations.save import (
    PostcopyTransitioned,
    SaveOperation,
    SaveParameters,
    SaveResult,
)
from xen_save_helper.toolstack.operations.stream_operation import Word, promises_nothing
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy

SUSPEND_DEBUG: Final = int(XCFlags.DEBUG)
"""LIBXL_SUSPEND_DEBUG: all memory is sent again after a live save, to be compared."""
SUSPEND_LIVE: Final = int(XCFlags.LIVE)
"""LIBXL_SUSPEND_LIVE: the domain runs while its memory is sent."""


async def domain_suspend(
    ctx: Context,
    domid: int,
    fd: int,
    flags: int = 0,
    *,
    bandwidth: int = 0,
    sparse: bool = False,
    on_end: Callable[[SaveResult], object] = not_told,
) -> SaveResult:
    """Save the domain into `fd` and leave it suspended. `flags` are SUSPEND_*; `bandwidth` limits
    the stream (bytes a second, 0 for no limit); `sparse` leaves out pages of zeros, which makes a
    stream that only our own engine restores. It never makes a postcopy transition, and never
    resumes the domain: the caller does.

    It works on a duplicate of `fd` from its first step on: the caller may close the original, or
    reuse its number. If it fails it shuts the stream, so that the other side of a socket sees the
    end at once (of a pipe, once the caller has closed the original).

    Raises TypeError and ValueError for bad arguments, before anything is begun. Later failures are
    in the result: ERROR_LOCK_FAIL if another operation on the domain is in progress,
    ERROR_DOMAIN_NOTFOUND if there is no such domain.

    A cancellation aborts the save in order (libxl_ao_abort: the helper's error path runs to its
    end) and is raised then, even if the save has succeeded meanwhile. Further ones change nothing.
    `on_end` is called with the result in any case, before that: after a cancellation it is the only
    way to learn whether the domain is suspended.
    """
    parameters = suspend_parameters(ctx, domid, fd, flags, bandwidth, sparse=sparse)
    return await _save_alone(ctx, parameters, on_end)


async def domain_live_migrate(
    ctx: Context,
    domid: int,
    send_fd: int,
    flags: int,
    recv_fd: int,
    memory_strategy: MemoryStrategy = MemoryStrategy.DEFAULT,
    *,
    precopy: PrecopyLimits = LIBXL_PRECOPY,
    bandwidth: int = 0,
    sparse: bool = False,
    link: str = "",
    on_transition: Callable[[], None] = promises_nothing,
    admitted: bool = True,
    on_end: Callable[[SaveResult], object] = not_told,
) -> SaveResult:
    """Save the domain into `send_fd` while it runs (SUSPEND_LIVE is forced); `recv_fd` is the back
    channel, without which (-1) the rc is ERROR_INVAL. Otherwise as `domain_suspend`.

    With MemoryStrategy.POSTCOPY the domain is handed over before all its memory is.
    `on_transition` is called at the point of no return, right before the first byte of
    POSTCOPY_TRANSITION_END can be written: record there that the domain may run at the destination.
    If it raises, the transition fails without having begun. If `admitted` is false the receiver may
    leave the stream unread at first, as xl's does while it waits for its lock: `Limits.admission`
    applies until it begins, and the log says that we are waiting for it.

    With a `link` (`ADDRESS[:PORT]`, an IP address of this host) there is no transition: the save
    ends with its stream, and the last pages stay with a page server, which the receiver's pager
    reaches there (`SaveResult.page_server`). They are lost with the domain, unless that is kept
    until it has ended. If there is no connection, all memory goes over the stream, and the log says
    so.
    """
    if recv_fd == -1:
        return _refused(Error.INVAL, "a live migration needs a back channel, recv_fd")
    parameters = live_migrate_parameters(
        ctx,
        domid,
        send_fd,
        flags,
        recv_fd,
        memory_strategy,
        precopy=precopy,
        bandwidth=bandwidth,
        sparse=sparse,
        link=link,
        on_transition=on_transition,
        admitted=admitted,
    )
    return await _save_alone(ctx, parameters, on_end)


def suspend_parameters(
    ctx: Context, domid: int, fd: int, flags: int, bandwidth: int, *, sparse: bool
) -> SaveParameters:
    """Check the arguments of `domain_suspend`. Raises TypeError, ValueError."""
    request = HelperRequest(
        Operation.SAVE,
        arguments.domain_number(domid),
        descriptors.writable("fd", fd),
        xcflags=_flags(flags),
        hypervisor=arguments.instance("ctx", ctx, Context).hypervisor,
        engine=ctx.engine,
        bandwidth=arguments.bandwidth(bandwidth),
        sparse=arguments.instance("sparse", sparse, bool),
    )
    return SaveParameters(request, MemoryStrategy.DEFAULT, LIBXL_PRECOPY, promises_nothing)


def live_migrate_parameters(
    ctx: Context,
    domid: int,
    send_fd: int,
    flags: int,
    recv_fd: int,
    memory_strategy: MemoryStrategy,
    *,
    precopy: PrecopyLimits,
    bandwidth: int,
    sparse: bool,
    link: str,
    on_transition: Callable[[], None],
    admitted: bool = True,
    receiving: Word | None = None,
) -> SaveParameters:
    """Check the arguments of `domain_live_migrate`. Raises TypeError, ValueError."""
    arguments.instance("precopy", precopy, PrecopyLimits)
    request = HelperRequest(
        Operation.SAVE,
        arguments.domain_number(domid),
        descriptors.writable("send_fd", send_fd),
        back_fd=descriptors.readable("recv_fd", recv_fd),
        xcflags=_flags(flags) | SUSPEND_LIVE,
        hypervisor=arguments.instance("ctx", ctx, Context).hypervisor,
        engine=ctx.engine,
        bandwidth=arguments.bandwidth(bandwidth),
        sparse=arguments.instance("sparse", sparse, bool),
        postcopy=memory_strategy is MemoryStrategy.POSTCOPY,
        max_downtime_ms=precopy.max_downtime_ms or 0,
        link=arguments.link(link),
        control=str(ctx.host.control_dir) if link else "",
    )
    return SaveParameters(
        request,
        arguments.instance("memory_strategy", memory_strategy, MemoryStrategy),
        precopy,
        arguments.function("on_transition", on_transition),
        admitted=arguments.instance("admitted", admitted, bool),
        receiving=receiving,
    )


def _flags(given: int) -> int:
    return arguments.flags(given, SUSPEND_LIVE=SUSPEND_LIVE, SUSPEND_DEBUG=SUSPEND_DEBUG)


async def _save_alone(
    ctx: Context, parameters: SaveParameters, on_end: Callable[[SaveResult], object]
) -> SaveResult:
    """Save with descriptors of our own, and with the domain locked."""
    request = parameters.request
    with OwnStream(request.io_fd, request.back_fd) as own:
        request = request._replace(io_fd=own.stream_fd, back_fd=own.back_fd)

        async def save() -> SaveResult:
            try:
                with domain_lock(ctx.host.state_dir, request.domid, "save"):
                    result = await save_domain(ctx, replace(parameters, request=request))
            except DomainBusyError as error:
                result = _refused(Error.LOCK_FAIL, message_of(error))
            if result.rc:
                own.shut()
            return result

        return await end_in_order(save(), on_end)


async def save_domain(ctx: Context, parameters: SaveParameters) -> SaveResult:
    """Save with the caller's descriptors, under the caller's lock. Raises only if there is a bug; a
    cancellation aborts the save and is absorbed."""
    request = parameters.request
    if problem := beyond_helper(
        ctx,
        postcopy=request.postcopy or bool(request.link),
        bandwidth=request.bandwidth,
        sparse=request.sparse,
        precopy=parameters.precopy,
    ):
        return _refused(Error.INVAL, problem)
    operation = SaveOperation(ctx, parameters)
    return await absorb(operation.run(), operation.cancel)


def beyond_helper(
    ctx: Context, *, postcopy: bool, bandwidth: int, sparse: bool, precopy: PrecopyLimits
) -> str:
    """What the helper cannot do of what is asked for; "" if it can do it all. A refusal is better
    than leaving something undone in silence."""
    program = ctx.program
    if postcopy and ctx.engine is Engine.LIBXENGUEST:
        return f"libxenguest has no postcopy; the engine {Engine.OWN} has it"
    if bandwidth and ctx.engine is Engine.LIBXENGUEST:
        return f"libxenguest has no bandwidth limit; the engine {Engine.OWN} has one"
    if sparse and (problem := beyond_sparse(ctx)):
        return problem
    if (
        isinstance(program, PipeHelper)
        and not asks_for_policy(program)
        and precopy != LIBXL_PRECOPY
    ):
        return f"{program.path} does not ask for a precopy policy: it follows libxc's own"
    return ""


def beyond_sparse(ctx: Context) -> str:
    """Why the helper neither writes nor reads sparse streams; "" if it does."""
    if isinstance(ctx.program, PipeHelper):
        return f"{ctx.program.path} may know nothing of pages that are left out"
    if ctx.engine is Engine.LIBXENGUEST:
        return f"libxenguest leaves out no pages; the engine {Engine.OWN} does"
    return ""


def _refused(rc: Error, reason: str) -> SaveResult:
    return SaveResult(rc, PostcopyTransitioned.NEVER, None, reason, suspended=False)
