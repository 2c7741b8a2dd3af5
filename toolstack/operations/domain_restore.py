"""Restore a domain: libxl_domain_create_restore, with the postcopy series' path.

If the host's own toolstack restores (`xl`, on Xen), it gets the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.aio import descriptors
from xen_save_helper.toolstack.cancellation import absorb, end_in_order, not_told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.operations.host_restore import HostRestore
from xen_save_helper.toolstack.operations.own_stream import OwnStream
from xen_save_helper.toolstack.operations.restore import (
    RestoreOperation,
    RestoreParameters,
    RestoreResult,
)
from xen_save_helper.toolstack.operations.stream_operation import Word, promises_nothing
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.rules.cause import message_of


async def domain_create_restore(
    ctx: Context,
    config: Mapping[str, Any],
    name: str,
    restore_fd: int,
    send_back_fd: int = -1,
    *,
    link: bool = False,
    on_resume: Callable[[], None] = promises_nothing,
    on_end: Callable[[RestoreResult], object] = not_told,
) -> RestoreResult:
    """Make a domain called `name` from the libxl stream in `restore_fd`. It is left paused, unless
    a postcopy transition has let it run; that needs the back channel `send_back_fd`, which is -1
    for none.

    `on_resume` is called right before the domain may run, on the postcopy path only; if it raises,
    the restore fails. On any failure the domain is destroyed. With `link` the stream may leave the
    last pages to a link (`domain_live_migrate`): a pager then stays behind that brings them.

    It works on duplicates of the descriptors, shuts the stream if it fails, raises TypeError and
    ValueError, and handles a cancellation, all as `domain_suspend` does. A cancellation comes too
    late once all of the stream is there and a domain is about to run after its postcopy transition:
    the source has given the domain away. It is raised all the same, after `on_end` has had the
    result.
    """
    arguments.instance("ctx", ctx, Context)
    parameters = restore_parameters(
        config, name, restore_fd, send_back_fd, link=link, on_resume=on_resume
    )
    with OwnStream(parameters.restore_fd, parameters.send_back_fd) as own:

        async def restore() -> RestoreResult:
            result = await restore_domain(
                ctx, replace(parameters, restore_fd=own.stream_fd, send_back_fd=own.back_fd)
            )
            if result.rc:
                own.shut()
            return result

        return await end_in_order(restore(), on_end)


def restore_parameters(
    config: Mapping[str, Any],
    name: str,
    restore_fd: int,
    send_back_fd: int = -1,
    *,
    link: bool = False,
    on_resume: Callable[[], None] = promises_nothing,
    receiving: Word | None = None,
) -> RestoreParameters:
    """Check the arguments of `domain_create_restore`. Raises TypeError, ValueError."""
    return RestoreParameters(
        arguments.configuration(config),
        arguments.domain_name(name),
        descriptors.readable("restore_fd", restore_fd),
        -1 if send_back_fd == -1 else descriptors.writable("send_back_fd", send_back_fd),
        arguments.function("on_resume", on_resume),
        link=arguments.instance("link", link, bool),
        receiving=receiving,
    )


async def restore_domain(ctx: Context, parameters: RestoreParameters) -> RestoreResult:
    """Restore with the caller's descriptors. Raises only if there is a bug; a cancellation aborts
    the restore and is absorbed."""
    try:
        program = ctx.host.restore_program(
            parameters.config, parameters.name, postcopy=parameters.send_back_fd >= 0
        )
    except (OSError, ValueError) as error:
        reason = f"the domain {parameters.name} cannot be restored: {message_of(error)}"
        return RestoreResult(Error.FAIL, None, False, None, reason, why(error))
    operation: RestoreOperation | HostRestore
    if program is None:
        operation = RestoreOperation(ctx, parameters)
    else:
        operation = HostRestore(ctx, parameters, program)
    return await absorb(operation.run(), operation.cancel)
