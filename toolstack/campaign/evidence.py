"""What is seen of a run from the outside: how the commands ended, the trace, the guests, the rest.

The judgement is left to `judge.oracle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final

from xen_save_helper.ipc_schema.faults.points import Side

NAME: Final = "g"
"""The name of the guest."""

Event = Mapping[str, Any]
"""A line of the trace."""


class Mode(Enum):
    """What the guest goes through; `SAVE` is a save into a file and, if that succeeds, a restore
    from it at the destination."""

    SAVE = "save"
    STOP_AND_COPY = "stop-and-copy"
    LIVE = "live"
    POSTCOPY = "postcopy"
    LINK = "link"
    """A postcopy whose last pages go over a link of their own."""


@dataclass(frozen=True)
class Ended:
    """How one of our commands ended. `code` is its exit status, negative for a signal; `late` says
    that it had to be killed."""

    command: str
    pid: int
    code: int
    out: str
    err: str
    seconds: float
    late: bool = False


@dataclass(frozen=True)
class Guest:
    """A guest at a host. `memory_ok` is what it says of its memory after it has checked all of it,
    None if it does not run and cannot be asked. `descriptors` as in `processes.descriptors`.
    """

    name: str
    state: str
    log_dirty: bool
    memory_ok: bool | None
    crash: str | None
    descriptors: Mapping[int, str] = field(default_factory=dict)

    @property
    def runs(self) -> bool:
        return self.state == "running"

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"


@dataclass(frozen=True)
class Place:
    """A host: its guests, and the names of files that belong neither to a guest nor to the host."""

    guests: tuple[Guest, ...]
    files: tuple[str, ...]

    def guest(self, name: str) -> Guest | None:
        return next((guest for guest in self.guests if guest.name == name), None)

    @property
    def journals(self) -> tuple[str, ...]:
        return tuple(name for name in self.files if name.endswith(".journal"))

    def __str__(self) -> str:
        return ", ".join(map(str, self.guests)) or "no guest"


@dataclass(frozen=True)
class Outliving:
    """A page server or a pager that has outlived its controller, as its host knows it. `alive`:
    its process is there. `left` is how many pages it lacks, None if it cannot be asked."""

    role: str
    alive: bool
    left: int | None

    def __str__(self) -> str:
        state = "" if self.alive else ", dead"
        return f"{self.role} ({'?' if self.left is None else self.left} pages left{state})"


@dataclass(frozen=True)
class Scene:
    """Both hosts at one time, the processes of the run that are not guests, and the names in its
    directory for temporary files. A page server or pager that works, and waits for one that is
    dead, is among those that have outlived, and not among the processes."""

    places: Mapping[Side, Place]
    processes: tuple[str, ...]
    temporary: tuple[str, ...]
    saved: bool = False
    """Whether the save file exists."""
    lingered: float = 0.0
    """Seconds that processes which still ran took to end."""
    outliving: Mapping[Side, tuple[Outliving, ...]] = field(default_factory=dict)

    def running(self) -> list[Guest]:
        return [guest for guest in self.guests() if guest.runs]

    def guests(self) -> Iterable[Guest]:
        for place in self.places.values():
            yield from place.guests


@dataclass(frozen=True)
class Again:
    """A restore without faults, and the guests that exist after it."""

    command: Ended
    guests: tuple[Guest, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.guests)) or "no guest"


@dataclass(frozen=True)
class Evidence:
    """One run. `command` is the command under test at the source, `restore` the one at the
    destination (`Mode.SAVE` only). `ends` are the scenes right after each of them, `recovered` is
    that after `recover` at each host with a journal, `last` that after a person has looked and
    chosen as `recover` proposed; each is the scene before if there was nothing to do. `recover` is
    also the next command if temporary files but no journal were left."""

    mode: Mode
    command: Ended
    restore: Ended | None
    recoveries: tuple[Ended, ...]
    persons: tuple[Ended, ...]
    after_save: Scene | None
    ends: tuple[Scene, ...]
    recovered: Scene
    last: Scene
    restored_again: Again | None
    """A restore from the save file, if the one with faults has left no guest."""
    events: tuple[Event, ...]
    descriptors_before: Mapping[int, str]
    """Those of the guest's process at the source before the run."""
    limit: float
    """Seconds within which each command had to end."""

    def of(self, side: Side) -> set[int]:
        """The pids of our controllers, of the helpers that they started at a side, and of what
        these have started."""
        controllers = self.controllers(side)
        started = {
            int(event["helper"])
            for event in self.named("helper_started")
            if event["pid"] in controllers
        }
        # One that outlives the helper does its work.
        working = {event["pid"] for event in self.named("outlives") if event["started"] in started}
        servers = {
            event["pid"]
            for event in self.events
            if side is Side.SOURCE and event["process"] == "page server"
        }
        return controllers | started | working | servers

    def controllers(self, side: Side) -> set[int]:
        if side is Side.SOURCE:
            return {self.command.pid}
        if self.restore is not None:
            return {self.restore.pid}
        return {int(event["pid"]) for event in self.events if event["process"] == "receiver"}

    def named(self, event: str, side: Side | None = None) -> list[Event]:
        pids = None if side is None else self.of(side)
        return [
            one
            for one in self.events
            if one["event"] == event and (pids is None or one["pid"] in pids)
        ]
