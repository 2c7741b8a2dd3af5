"""How a save ends."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from xen_save_helper.ipc_schema.channel.waits import BUFFERED
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.helpers.request import Statistics


def has_begun(statistics: Statistics | None) -> bool:
    """Whether a stream's receiver has taken more of it than what lies between can hold; False also
    where the helper does not count."""
    return statistics is not None and statistics.bytes > BUFFERED


class PostcopyTransitioned(Enum):
    """What has become of the hand-over to the destination."""

    NEVER = "never"
    """It was never reached."""
    FAILED = "failed"
    """It was reached, and its last octet was certainly not written: the guest cannot run at the
    destination."""
    DONE = "done"
    """The guest may run at the destination: it must not be resumed here, unless the destination
    says that it did not start."""


@dataclass(frozen=True)
class SaveResult:
    """How a save ended.

    `rc` is `Error.OK` (0) or libxl's code of the error, `reason` a line for people (empty on
    success). `suspended` is True where the domain has suspended, or may yet, for this save: the
    caller hands it over or resumes it; with an `rc` and False there is nothing to resume. `theirs`
    is that of `cause.Failure`: all that is known is that the other side of the stream has gone.
    """

    rc: Error
    postcopy_transitioned: PostcopyTransitioned
    statistics: Statistics | None
    reason: str
    suspended: bool
    theirs: bool = False
