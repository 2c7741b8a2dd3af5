"""Of the failures that one operation meets: which is the cause, which came of it, and how people
read them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain


def message_of(error: BaseException) -> str:
    """One line for people: `strerror: file` instead of Python's `[Errno 2] ...`."""
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{name}"
    return str(error) or type(error).__name__


@dataclass(frozen=True)
class Failure:
    """`rc` is a libxl error code, or 0 for what failed nothing and has to be told all the same;
    `reason` is a line for people. `theirs`: it says no more than that
    the other side of the stream has failed or gone, and knows the cause better."""

    rc: int
    reason: str
    theirs: bool = False


class Failures:
    """Failures in the order in which they come. What follows from a failure comes after it; but
    where the other side was the first to fail, what is seen of that here comes before its word."""

    def __init__(self) -> None:
        self._met: list[Failure] = []

    def met(self, failure: Failure) -> None:
        self._met.append(failure)

    @property
    def cause(self) -> Failure | None:
        """The first that is no mere trace of the other side's; where there is none, the first; and
        where nothing failed the last that is to be told."""
        failed = [failure for failure in self._met if failure.rc]
        ours = (failure for failure in failed if not failure.theirs)
        return next(chain(ours, failed, reversed(self._met)), None)

    @property
    def rc(self) -> int:
        """The first that is not 0, as libxl's is; 0 where there is none."""
        return next((failure.rc for failure in self._met if failure.rc), 0)

    @property
    def reason(self) -> str:
        """The cause's; empty where there is none."""
        return self.cause.reason if self.cause is not None else ""

    @property
    def consequences(self) -> tuple[str, ...]:
        """What to tell those who want to know all, each once."""
        reasons = dict.fromkeys(failure.reason for failure in self._met)
        return tuple(reason for reason in reasons if reason != self.reason)
