"""An operation that other shells can see and steer (`ipc_schema.control`)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.toolstack.context import OURS, Context
from xen_save_helper.toolstack.helpers.operation_control import OperationControl
from xen_save_helper.toolstack.rules.cause import message_of


@contextmanager
def controlled(
    ctx: Context,
    role: Role,
    name: str,
    domid: int = -1,
    *,
    task: asyncio.Task[Any] | None = None,
    too_late: Callable[[], str] = lambda: "",
    step: Callable[[], str] = lambda: "",
) -> Iterator[Context]:
    """The context for an operation that `task` does, or this one; to cancel it is to cancel the
    task. An exception is why its work is not done. Without a control socket it goes on all the
    same."""
    task = task or asyncio.current_task()
    assert task is not None, "an operation runs in a task"
    try:
        control = OperationControl(
            ctx.host.control_dir,
            role,
            name=name,
            domid=domid,
            trace=ctx.trace,
            cancel=task.cancel,
            too_late=too_late,
            step=step,
        )
    except OSError as error:
        why = message_of(error)
        ctx.trace.event("no_control", directory=str(ctx.host.control_dir), error=why)
        ctx.say(XentoollogLevel.DEBUG, OURS, f"no other shell can see or steer this: {why}")
        yield ctx
        return
    try:
        yield replace(ctx, control=control)
    except BaseException as error:
        control.ended = control.ended or message_of(error)
        raise
    finally:
        control.close()
