"""Save a domain: libxl_domain_suspend and, of the postcopy series, libxl_domain_live_migrate."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from ipc_schema.messages import XCFlags
from toolstack.context import Context
from toolstack.precopy_policy import MemoryStrategy, PrecopyLimits
from toolstack.save_helper import Statistics

SUSPEND_DEBUG = int(XCFlags.DEBUG)
SUSPEND_LIVE = int(XCFlags.LIVE)


class PostcopyTransitioned(Enum):
    """What has become of the hand-over to the destination."""

    NEVER = "never"
    """It was not begun, or not to the point where the destination could notice."""
    FAILED = "failed"
    """It was begun, and its last octet was certainly not written: the guest cannot run at the
    destination."""
    DONE = "done"
    """The guest may run at the destination: it must not be resumed here, unless the destination
    says that it did not start."""


@dataclass(frozen=True)
class SaveResult:
    """How a save ended.

    `rc` is 0 or a libxl error code, `reason` a line for people (empty on success). `suspended` is
    True where the domain has suspended, or may yet, for this save: the caller hands it over or
    resumes it; with an `rc` and False there is nothing to resume.
    """

    rc: int
    postcopy_transitioned: PostcopyTransitioned
    statistics: Statistics | None
    reason: str
    suspended: bool


def _nothing() -> None: ...


async def domain_suspend(
    ctx: Context, domid: int, fd: int, flags: int = 0, *, bandwidth: int = 0
) -> SaveResult:
    """Save the domain into `fd` and leave it suspended. `flags` are SUSPEND_*, `bandwidth` limits
    the stream (octets a second, 0 for none). Never makes a postcopy transition.

    Returns in all cases but a fault of the program; a cancellation aborts the save in order and
    returns ERROR_ABORTED. Never resumes the domain: that is the caller's part.
    """
    raise NotImplementedError


async def domain_live_migrate(
    ctx: Context,
    domid: int,
    send_fd: int,
    flags: int,
    recv_fd: int,
    memory_strategy: MemoryStrategy = MemoryStrategy.DEFAULT,
    *,
    precopy: PrecopyLimits = PrecopyLimits(),
    bandwidth: int = 0,
    on_transition: Callable[[], None] = _nothing,
) -> SaveResult:
    """Save the running domain into `send_fd` while it runs (SUSPEND_LIVE is forced); `recv_fd` is
    the back channel, without which the rc is ERROR_INVAL. Otherwise as `domain_suspend`.

    With MemoryStrategy.POSTCOPY the domain is handed over before all its memory is.
    `on_transition` is called right before the first octet of POSTCOPY_TRANSITION_END can be
    written; where it raises, the transition fails without having begun.
    """
    raise NotImplementedError
