"""The picture that a timeline is, without how it looks: lanes with spans and marks, and tables.

All times are seconds from its beginning; negative ones may come from the error of a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.clocks import Alignment

Details = tuple[tuple[str, str], ...]
"""Names and values, for people."""


class Kind(Enum):
    """What a span or a mark is; also the class that shows it."""

    STEP = "step"
    PHASE = "phase"
    ROUND = "round"
    CALLBACK = "callback"
    MESSAGE = "message"
    STREAM = "stream"
    RUNS = "runs"
    STANDS = "stands"
    ARRIVES = "arrives"
    """It runs, and pages are missing."""
    DECISION = "decision"
    INJECTED = "injected"
    """A fault of a fault plan."""
    FAILURE = "failure"
    EVENT = "event"


@dataclass(frozen=True)
class Span:
    """`ended`: it has an end of its own; else it ends where its process's trace does."""

    start: float
    end: float
    name: str
    kind: Kind
    details: Details = ()
    ended: bool = True

    @property
    def seconds(self) -> float:
        return max(0.0, self.end - self.start)


@dataclass(frozen=True)
class Mark:
    at: float
    name: str
    kind: Kind
    details: Details = ()


@dataclass(frozen=True)
class Message:
    """`outward`: from the source to the destination."""

    said: float
    heard: float
    what: str
    outward: bool


@dataclass(frozen=True)
class Lane:
    """`rows` are spans of which none in a row overlaps another one."""

    name: str
    note: str
    rows: tuple[tuple[Span, ...], ...]
    marks: tuple[Mark, ...] = ()


@dataclass(frozen=True)
class Counter:
    """A figure over time: each value holds from its point to the next one's."""

    name: str
    unit: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Round:
    """A round of memory. `size` is of its pages, in bytes, `dirty` how many pages were found dirty
    after it; `decision` and `why` are the policy's about what follows."""

    name: str
    start: float
    end: float
    pages: int
    size: int
    dirty: int | None
    decision: str
    why: str

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def rate(self) -> float | None:
        """Bytes per second."""
        return self.size / self.seconds if self.seconds > 0 and self.size else None


@dataclass(frozen=True)
class Part:
    """A part of the downtime. `how` says between which events it is."""

    name: str
    start: float
    end: float
    how: str

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Downtime:
    """`parts` follow each other. `whole`: the trace shows its beginning and its end; else `missing`
    says what it does not show. `told` is what the guest itself measured, in seconds."""

    parts: tuple[Part, ...]
    whole: bool
    missing: str
    told: float | None

    @property
    def start(self) -> float:
        return self.parts[0].start

    @property
    def end(self) -> float:
        return self.parts[-1].end

    @property
    def seconds(self) -> float:
        return self.end - self.start


@dataclass(frozen=True)
class Faults:
    """Page faults of a postcopy. `classes[n]` of them took less than 2**n microseconds, and no less
    than half of that. `told`: what the guest itself measured."""

    count: int
    classes: tuple[int, ...]
    longest: float
    told: Details

    def at_most(self, share: float) -> float | None:
        """Seconds that `share` of the faults took at most: the upper end of a class."""
        total, wanted = 0, share * sum(self.classes)
        for number, count in enumerate(self.classes):
            total += count
            if count and total >= wanted:
                return min(float(2**number) / 1e6, self.longest)
        return None


@dataclass(frozen=True)
class Row:
    """A line of the trace. `noise`: it is one of many that say little."""

    at: float
    lane: str
    event: str
    fields: Mapping[str, Any]
    noise: bool
    bad: bool

    @property
    def details(self) -> Details:
        return told(self.fields)


def told(fields: Mapping[str, Any]) -> Details:
    """Fields of an event, for people."""
    return tuple((name, words.text(value, name)) for name, value in fields.items())


@dataclass(frozen=True)
class Picture:
    """`begun` is the time of day at its beginning (seconds since 1970), if that is known.
    `headline` says how it ended, and `good` whether well (None if the trace does not say)."""

    title: str
    headline: str
    good: bool | None
    begun: float | None
    start: float
    end: float
    figures: Details
    lanes: tuple[Lane, ...]
    counters: tuple[Counter, ...]
    messages: tuple[Message, ...]
    rounds: tuple[Round, ...]
    downtime: Downtime | None
    faults: Faults | None
    failures: tuple[Row, ...]
    rows: tuple[Row, ...]
    alignment: Alignment | None
    """None if there is only one clock."""
    same_clock: bool
    """Both sides were there, and had the same clock."""
    files: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return self.end - self.start
