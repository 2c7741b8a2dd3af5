"""The data of a campaign's page, from which report.js makes all that is shown: figures, verdicts,
points and actions, and the traces, each row of the matrix compressed."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from xen_save_helper.ipc_schema.faults import actions as fault_actions
from xen_save_helper.ipc_schema.faults.actions import DEATHS, DIE, ActionKind
from xen_save_helper.ipc_schema.faults.plan import Fault, parse
from xen_save_helper.ipc_schema.faults.points import POINTS, Kind, Point, Who
from xen_save_helper.toolstack.campaign import reach
from xen_save_helper.toolstack.campaign.report.figures import (
    FAILS,
    HOLDS,
    IDLE,
    Report,
    headline,
    tally,
    value_text,
    why,
)
from xen_save_helper.toolstack.campaign.report.lanes import LANES, lanes
from xen_save_helper.toolstack.campaign.run import Verdict

_CLASSES: Final[Mapping[str, str]] = {HOLDS: "holds", FAILS: "fails", IDLE: "idle"}
"""Classes of the style sheet, by the kind of a verdict."""

_KINDS: Final[Mapping[Kind, str]] = {
    Kind.MILESTONE: "milestones",
    Kind.MESSAGE: "messages",
    Kind.HANDSHAKE: "handshake",
    Kind.PHASE: "phases",
    Kind.RECORD: "records",
    Kind.STREAM: "streams",
    Kind.GUEST: "",
    Kind.STEP: "steps",
}
_GROUPS: Final[tuple[tuple[str, tuple[ActionKind, ...]], ...]] = (
    ("process", fault_actions.PROCESS),
    ("call", (fault_actions.ANSWER, fault_actions.FAIL, fault_actions.HANG_UP)),
    ("message, record", fault_actions.MESSAGE),
    ("stream", fault_actions.STREAM),
    ("guest", fault_actions.GUEST),
)
"""The columns of a matrix."""

_SHOWN_OF_TEXT: Final = 2000
"""Characters that are kept of a field of an event."""


class PlacedVerdict(NamedTuple):
    """A verdict, its place in the report, and the block that has its trace."""

    number: int
    verdict: Verdict
    faults: tuple[Fault, ...]
    block: int

    @property
    def aim(self) -> Fault:
        return self.faults[-1]

    @property
    def in_matrix(self) -> bool:
        """Whether it belongs to the matrix: a plan of two faults by chance does not."""
        return self.faults == reach.primed(self.aim)


def entries_of(
    report: Report, timelines: Mapping[int, str]
) -> tuple[list[PlacedVerdict], list[str]]:
    """Verdicts of the same point and mode share a block, since their traces are alike.
    `timelines` are links by the verdicts' numbers."""
    rows: dict[tuple[str, Who, str], list[PlacedVerdict]] = {}
    entries = []
    for number, verdict in enumerate(report.verdicts):
        faults = parse(verdict.plan).faults
        point = faults[-1].point
        key = (verdict.mode, point.who, point.name)
        row = rows.setdefault(key, [])
        block = row[0].block if row else len(rows) - 1
        row.append(PlacedVerdict(number, verdict, faults, block))
        entries.append(row[-1])
    return entries, [
        _pack([_details(report, entry, timelines) for entry in row]) for row in rows.values()
    ]


def index_of(report: Report, entries: Sequence[PlacedVerdict]) -> dict[str, object]:
    """What the script knows without unpacking anything. A verdict is a list: its block,
    class, mode, plan, seconds, what is wrong, and its cell (None outside a matrix): the place of
    its point in `points`, its action, and the death that it is by."""
    total = tally(report.verdicts)
    points = _in_sections(entry.aim.point for entry in entries if entry.in_matrix)
    places = {point: place for place, point in enumerate(points)}
    return {
        "title": report.title,
        "version": report.version,
        "headline": headline(report),
        "allHold": report.all_hold,
        "figures": {
            "holds": total.holds,
            "fails": total.fails,
            "idle": total.idle,
            "missing": report.missing,
            "runs": total.runs,
            "whole": total.whole,
            "seconds": total.seconds,
        },
        "modes": report.modes,
        "wrong": [entry.number for entry in entries if report.is_wrong(entry.verdict)],
        "verdicts": [_row(entry, places) for entry in entries],
        "points": [[str(point), point.doc, _section(point)] for point in points],
        "actions": [[name, [[one.name, one.doc] for one in kinds]] for name, kinds in _GROUPS],
        "deaths": list(DEATHS),
        "unreached": [[str(point), reason] for point, reason in reach.unreached(POINTS)],
        "lanes": LANES,
    }


def _row(entry: PlacedVerdict, places: Mapping[Point, int]) -> list[object]:
    verdict = entry.verdict
    return [
        entry.block,
        _CLASSES[verdict.kind],
        verdict.mode,
        verdict.plan,
        verdict.seconds,
        "" if verdict.holds else why(verdict),
        _cell(entry.aim, places) if entry.in_matrix else None,
    ]


def _cell(aim: Fault, places: Mapping[Point, int]) -> list[object]:
    deaths = (name for name, signal in DEATHS.items() if aim.action == (DIE, signal))
    return [places[aim.point], aim.action.kind.name, next(deaths, None)]


def _in_sections(points: Iterable[Point]) -> list[Point]:
    """Each point once, by who passes it and by kind, then as in POINTS."""
    whos, kinds, wanted = list(Who), list(_KINDS), set(points)
    found = [point for point in POINTS.values() if point in wanted]
    return sorted(found, key=lambda point: (whos.index(point.who), kinds.index(point.kind)))


def _section(point: Point) -> str:
    return f"{point.who.value.capitalize()} {_KINDS[point.kind]}".strip()


def _pack(content: object) -> str:
    data = gzip.compress(json.dumps(content, default=str).encode(), compresslevel=6, mtime=0)
    return base64.b64encode(data).decode()


def _details(
    report: Report, entry: PlacedVerdict, timelines: Mapping[int, str]
) -> dict[str, object]:
    verdict = entry.verdict
    events = sorted(report.trace(verdict), key=lambda event: float(event["t"]))
    start = _zero(events)
    return {
        "number": entry.number,
        "again": report.again(verdict),
        "timeline": timelines.get(entry.number),
        "expected": verdict.expected,
        "seen": [[name, _text(value)] for name, value in verdict.seen.items()],
        "fired": list(verdict.fired),
        "problems": list(verdict.problems),
        "seconds": verdict.seconds,
        "events": [
            [round((event["t"] - start) * 1000, 3), lane, event["event"], _fields(event)]
            for event, lane in zip(events, lanes(events), strict=True)
        ],
    }


def _zero(events: Sequence[Mapping[str, Any]]) -> float:
    """The time of the first fault, or else of the first event."""
    times = [float(event["t"]) for event in events if event["event"] == "fault"]
    return min(times, default=float(events[0]["t"]) if events else 0.0)


def _fields(event: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, value_text(name, value) if name == "errnoval" else _text(value)]
        for name, value in event.items()
        if name not in {"t", "process", "event"}
    ]


def _text(value: object) -> str:
    if isinstance(value, str):
        text = value
    elif isinstance(value, int | float):
        text = str(value).lower()
    elif isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        text = "\n".join(value)
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= _SHOWN_OF_TEXT else f"{text[:_SHOWN_OF_TEXT]}…"
