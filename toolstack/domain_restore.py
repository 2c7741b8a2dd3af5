"""Restore a domain: libxl_domain_create_restore, with the postcopy series' path.

Where the host's own toolstack restores (on Xen: `xl`), it is given the stream.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ipc_schema.errors import Error
from toolstack.context import Context
from toolstack.failure import message_of
from toolstack.host_restore import HostRestore
from toolstack.operation import end_in_order
from toolstack.restore_operation import RestoreOperation, RestoreParameters, RestoreResult

__all__ = ["RestoreResult", "domain_create_restore"]


def _nothing() -> None:
    """For a caller that does not want to know."""


async def domain_create_restore(
    ctx: Context,
    config: Mapping[str, Any],
    name: str,
    restore_fd: int,
    send_back_fd: int = -1,
    *,
    on_resume: Callable[[], None] = _nothing,
) -> RestoreResult:
    """Make a domain called `name` from the libxl stream in `restore_fd`. It is left paused, unless
    a postcopy transition has let it run; `send_back_fd` is the back channel that this needs.

    `on_resume` is called right before the domain may run, on the postcopy path only; where it
    raises, the restore fails. On any failure the domain is destroyed. Returns in all cases but a
    fault of the program; a cancellation aborts in order and returns ERROR_ABORTED.
    """
    parameters = RestoreParameters(config, name, restore_fd, send_back_fd, on_resume)
    try:
        program = ctx.host.restore_program(config, name)
    except (OSError, ValueError) as error:
        reason = f"the domain {name} cannot be restored: {message_of(error)}"
        return RestoreResult(Error.FAIL, None, False, None, reason)
    operation: RestoreOperation | HostRestore
    if program is None:
        operation = RestoreOperation(ctx, parameters)
    else:
        operation = HostRestore(ctx, parameters, program)
    return await end_in_order(operation.run(), operation.cancel)
