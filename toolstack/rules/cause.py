"""The failures of one operation: which is the cause, which are its consequences, and their text."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

from xen_save_helper.ipc_schema.causes import SYSTEM, Cause, Why


def message_of(error: BaseException) -> str:
    """One line for people: `strerror: file` instead of Python's `[Errno 2] ...`."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{name}"
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Failure:
    """A failure of an operation, or (`rc` 0) a notice that must be shown all the same.

    `rc` is a libxl error code, `reason` a line for people.
    """

    rc: int
    reason: str
    why: Why = SYSTEM

    @property
    def theirs(self) -> bool:
        """Whether all it says is that the other side of the stream failed or disconnected; that
        side knows the cause better."""
        return self.why.cause is Cause.PEER


class Failures:
    """Failures in the order in which they come. A consequence comes after its cause; but if the
    other side failed first, what is seen of that here comes before its own report."""

    def __init__(self) -> None:
        self._met: list[Failure] = []

    def met(self, failure: Failure) -> None:
        self._met.append(failure)

    @property
    def cause(self) -> Failure | None:
        """The first failure that is ours, else the first of all; if nothing failed, the last
        notice."""
        failed = [failure for failure in self._met if failure.rc]
        ours = (failure for failure in failed if not failure.theirs)
        return next(chain(ours, failed, reversed(self._met)), None)

    @property
    def rc(self) -> int:
        """The first that is not 0, as in libxl; 0 if nothing failed."""
        return next((failure.rc for failure in self._met if failure.rc), 0)

    @property
    def reason(self) -> str:
        """The cause's reason, "" if there is none."""
        return self.cause.reason if self.cause is not None else ""

    @property
    def consequences(self) -> tuple[str, ...]:
        """Every other reason, each once, for people who want to know all."""
        reasons = dict.fromkeys(failure.reason for failure in self._met)
        return tuple(reason for reason in reasons if reason != self.reason)
