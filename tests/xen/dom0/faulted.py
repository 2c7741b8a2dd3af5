"""One run of `xl` with a fault in its helper: observed to its end, and judged."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Final

from tests.xen.dom0 import clean_up
from tests.xen.dom0.whereabouts import our_helpers

if TYPE_CHECKING:
    from tests.xen.dom0.commands import Program

ANSWER_SECONDS: Final = 20
"""Our helper's limit for an answer. Answering may involve a request to the guest, which takes some
seconds here."""
STALL_SECONDS: Final = 10
"""Our helper's limit for a stream that stands still, if the fault stops the stream. Otherwise it
keeps its usual minute, so that the other end of a migration is not the one that gives up."""


def limits(plan: str) -> dict[str, str]:
    """The environment that gives our helper its limits under `plan`."""
    given = {"XEN_SAVE_HELPER_ANSWER_LIMIT": str(ANSWER_SECONDS)}
    if "=stall" in plan:
        given["XEN_SAVE_HELPER_STREAM_STALL"] = str(STALL_SECONDS)
    return given


STOPPED_SECONDS: Final = 15
"""If a helper has been stopped for this long, nobody is going to continue it."""
ALONE_SECONDS: Final = 45
"""If `xl` still runs this long after its helpers have ended, it never will: what it has to do
without them takes a quarter of that time."""
BOUND_SECONDS: Final = 300
"""A command that has not ended after this time waits for ever: a whole migration takes a third of
it."""

_GAVE_UP: Final = re.compile(r"no answer to \w+ within|the stream stands still")
_POLL_SECONDS: Final = 0.25


class End(Enum):
    """What was necessary for `xl` to end."""

    ITSELF = "by itself"
    LIMIT = "ended by our helper's own limit"
    KILLED = "ended when its helper was killed"
    NEVER = "not ended, though its helper had"


@dataclass(frozen=True)
class Watched:
    """`status` is None if it did not end."""

    end: End
    status: int | None
    output: str
    seconds: float


def watch(program: Program) -> Watched:
    """Wait for the command to end. If it waits for its helpers for ever, kill them; if that does
    not end it, kill it."""
    started = time.monotonic()
    if _wait(program, started + BOUND_SECONDS):
        end = End.LIMIT if _GAVE_UP.search(program.output) else End.ITSELF
    else:
        helpers = our_helpers()
        for pid in helpers:
            clean_up.kill(pid)
        end = End.KILLED if helpers and program.wait(ALONE_SECONDS) else End.NEVER
    if end is End.NEVER:
        program.kill_session()
        program.wait(ALONE_SECONDS)
    seconds = time.monotonic() - started
    ended = program.end(limit=1)
    status = None if end is End.NEVER else ended.status
    return Watched(end, status, ended.output, seconds)


def _wait(program: Program, end: float) -> bool:
    """Whether the command ends by itself."""
    stopped, alone = _Lasting(STOPPED_SECONDS), _Lasting(ALONE_SECONDS)
    while not program.wait(_POLL_SECONDS):
        helpers = our_helpers()
        if (
            stopped.for_long("T" in helpers.values())
            or alone.for_long(not helpers)
            or time.monotonic() > end
        ):
            return False
    return True


class _Lasting:
    """Whether a condition has held for `seconds`, each time that it was checked."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def for_long(self, holds: bool) -> bool:
        now = time.monotonic()
        self._since = (self._since or now) if holds else None
        return self._since is not None and now - self._since > self._seconds


_PLACE: Final = re.compile(r"^libxl: error: [\w.]+:\d+:\w+: ?(?:Domain \d+:)?")
_OF_THE_PIPE: Final = "file/stream truncated reading ipc msg"
"""The beginning of libxl's message about any helper that has ended; the way it ended follows."""
_HOW_IT_WENT: Final = re.compile(r"save/restore helper \[\d+\] ")
_OF_OUR_HELPER: Final = re.compile(r"^xen-save-helper: (?:error: )?(?!fault: )")


def telling(output: str) -> str:
    """The most telling lines: our helper's first message; libxl's first error, which causes its
    others; the assertion that ended xl; or else the last message of `xl` itself that is not about
    progress."""
    lines = re.split(r"[\r\n]+", output)
    first = next((n for n, line in enumerate(lines) if _PLACE.match(line)), len(lines))
    errors = [_PLACE.sub("", line).strip() for line in lines[first:] if _PLACE.match(line)]
    if len(errors) > 1 and errors[0].startswith(_OF_THE_PIPE) and _HOW_IT_WENT.search(errors[1]):
        del errors[0]
    ours = [line for line in lines[:first] if _OF_OUR_HELPER.match(line)]
    assertions = [line for line in lines if "Assertion `" in line]
    return "; ".join([*ours[:1], *errors[:1], *assertions]) or _last_of_xl(lines)


def _last_of_xl(lines: Sequence[str]) -> str:
    said = [line for line in lines if line and not re.match(r"xc: |xen-save-helper: |\s", line)]
    return said[-1] if said else ""


@dataclass
class Left:
    """What a command has wrongly left behind, a line for each. `helpers` are processes; `log_dirty`
    says whether the guest's log-dirty mode stayed on."""

    helpers: list[str] = field(default_factory=list)
    log_dirty: bool = False
    domains: list[str] = field(default_factory=list)
    traces: list[str] = field(default_factory=list)

    def words(self) -> list[str]:
        dirty = ["log-dirty mode"] if self.log_dirty else []
        return [*self.domains, *dirty, *self.helpers, *self.traces]
