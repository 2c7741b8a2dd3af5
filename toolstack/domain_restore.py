"""Restore a domain: libxl_domain_create_restore, with the postcopy series' path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from toolstack.context import Context
from toolstack.save_helper import Statistics


@dataclass(frozen=True)
class RestoreResult:
    """How a restore ended.

    `rc` is 0 or a libxl error code, `reason` a line for people (empty on success). `domid` is the
    new domain, None where there is none (any more). `postcopy_resumed` says that the domain was
    let run after a postcopy transition; it may have run even where `rc` is not 0.
    """

    rc: int
    domid: int | None
    postcopy_resumed: bool
    statistics: Statistics | None
    reason: str


def _nothing() -> None: ...


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
    raise NotImplementedError
