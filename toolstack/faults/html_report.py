"""A campaign as one HTML page that needs nothing else: no network, no other file.

For each mode a matrix of points and actions; a cell opens what was expected, what was seen, and
the trace as a timeline of both sides. The traces are compressed, a row of the matrix at a time,
and are unpacked by the page when they are looked at.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, NamedTuple

from ipc_schema import fault_actions
from ipc_schema.fault_actions import ActionKind
from ipc_schema.fault_plan import Fault, parse
from ipc_schema.fault_points import POINTS, Kind, Point, Who
from toolstack.faults import reach
from toolstack.faults.lanes import LANES, lanes
from toolstack.faults.markup import Markup, join, raw, tag
from toolstack.faults.report import FAILS, HOLDS, IDLE, Report, headline, tally, why
from toolstack.faults.run import Verdict

_GLYPHS: Final[Mapping[str, str]] = {HOLDS: "✓", FAILS: "✗", IDLE: "○"}
_CLASSES: Final[Mapping[str, str]] = {HOLDS: "holds", FAILS: "fails", IDLE: "idle"}
_WORST: Final = (FAILS, IDLE, HOLDS)
_KINDS: Final[Mapping[Kind, str]] = {
    Kind.MILESTONE: "milestones",
    Kind.MESSAGE: "messages",
    Kind.PHASE: "phases",
    Kind.RECORD: "records",
    Kind.STREAM: "streams",
    Kind.GUEST: "",
}
_GROUPS: Final[tuple[tuple[str, tuple[ActionKind, ...]], ...]] = (
    ("process", fault_actions.PROCESS),
    (
        "call",
        (fault_actions.ANSWER, fault_actions.FAIL, fault_actions.HANG_UP),
    ),
    ("message, record", fault_actions.MESSAGE),
    ("stream", fault_actions.STREAM),
    ("guest", fault_actions.GUEST),
)
"""The columns."""

_SHOWN_OF_TEXT: Final = 2000
"""Characters of a field of an event."""


class _Entry(NamedTuple):
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
        return len(self.faults) == 1 or self.aim.point.of in reach.PRIMERS


def write(report: Report, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page(report), encoding="utf-8", errors="backslashreplace")


def page(report: Report) -> str:
    entries, blocks = _entries(report)
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{report.title}: {headline(report)}"),
        raw("style", style),
    )
    body = tag(
        "body",
        _header(report),
        tag("main", *_panels(report, entries), id="main"),
        _dialog(),
        tag("noscript", tag("p", "Without JavaScript the cells cannot be opened.", class_="note")),
        raw("script", _json(_index(entries)), type="application/json", id="index"),
        *(raw("script", block, type="text/plain", class_="block") for block in blocks),
        raw("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _resource(name: str) -> str:
    return (files("toolstack.faults") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(value: object) -> str:
    """JSON that may stand in a script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")


# The data.


def _entries(report: Report) -> tuple[list[_Entry], list[str]]:
    """Verdicts of the same point and mode share a block: their traces are much alike."""
    rows: dict[tuple[str, Who, str], list[_Entry]] = {}
    entries = []
    for number, verdict in enumerate(report.verdicts):
        faults = parse(verdict.plan).faults
        point = faults[-1].point
        key = (verdict.mode, point.who, point.name)
        row = rows.setdefault(key, [])
        block = row[0].block if row else len(rows) - 1
        row.append(_Entry(number, verdict, faults, block))
        entries.append(row[-1])
    return entries, [_pack([_details(report, entry) for entry in row]) for row in rows.values()]


def _pack(content: object) -> str:
    octets = gzip.compress(json.dumps(content, default=str).encode(), compresslevel=6, mtime=0)
    return base64.b64encode(octets).decode()


def _details(report: Report, entry: _Entry) -> dict[str, object]:
    verdict = entry.verdict
    events = sorted(report.trace(verdict), key=lambda event: float(event["t"]))
    start = _zero(events)
    return {
        "number": entry.number,
        "again": report.again(verdict),
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
    """The first fault's time, or else the first event's."""
    times = [float(event["t"]) for event in events if event["event"] == "fault"]
    return min(times, default=float(events[0]["t"]) if events else 0.0)


def _fields(event: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, _text(value)]
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


def _index(entries: Iterable[_Entry]) -> dict[str, object]:
    return {
        "lanes": LANES,
        "verdicts": [
            [entry.block, _CLASSES[entry.verdict.kind], entry.verdict.mode, entry.verdict.plan]
            for entry in entries
        ],
    }


# What is seen.


def _header(report: Report) -> Markup:
    total = tally(report.verdicts)
    figures = [
        ("hold", total.holds, "holds"),
        ("fail", total.fails, "fails"),
        ("did not fire", total.idle, "idle"),
    ]
    if report.missing:
        figures.append(("not run", report.missing, "missing"))
    return tag(
        "header",
        tag("p", "Xen save helper · fault injection", class_="eyebrow"),
        tag("h1", report.title),
        tag("p", headline(report), class_=f"headline {'holds' if report.all_hold else 'fails'}"),
        tag(
            "ul",
            *(
                tag("li", tag("b", f"{number:,}"), " ", name, class_=kind if number else "none")
                for name, number, kind in figures
            ),
            class_="figures",
        ),
        tag(
            "p",
            f"{total.runs:,} runs of real processes on two simulated hosts, "
            f"{_hours(total.seconds)} of running time; each judged from the outside: exit codes, "
            "trace, process table, and the guest's memory.",
            class_="note",
        ),
    )


def _hours(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _panels(report: Report, entries: Sequence[_Entry]) -> Iterator[Markup]:
    tabs: list[tuple[str, str, Markup, int]] = []
    wrong = [entry for entry in entries if report.is_wrong(entry.verdict)]
    if wrong:
        tabs.append(("wrong", "What does not hold", _list(wrong), len(wrong)))
    for mode in report.modes:
        of = [entry for entry in entries if entry.verdict.mode == mode]
        single = [entry for entry in of if entry.in_matrix]
        several = [entry for entry in of if not entry.in_matrix]
        parts = [_matrix(mode, single)] if single else []
        if several:
            parts.append(_list(several))
        tabs.append((mode, mode.capitalize().replace("-", " "), join(*parts), len(of)))
    yield tag(
        "div",
        *(
            tag(
                "button",
                title,
                " ",
                tag("span", f"{number:,}", class_="count"),
                role="tab",
                type="button",
                id=f"tab-{name}",
                aria_controls=f"panel-{name}",
                aria_selected="true" if index == 0 else "false",
                tabindex="0" if index == 0 else "-1",
                class_="wrong" if name == "wrong" else None,
            )
            for index, (name, title, _content, number) in enumerate(tabs)
        ),
        role="tablist",
        aria_label="Modes",
    )
    yield _toolbar()
    for index, (name, _title, content, _number) in enumerate(tabs):
        yield tag(
            "section",
            content,
            role="tabpanel",
            id=f"panel-{name}",
            aria_labelledby=f"tab-{name}",
            hidden=index > 0,
        )
    left_out = reach.unreached(POINTS)
    yield tag(
        "details",
        tag("summary", f"{len(left_out)} points that none of these runs passes"),
        tag(
            "ul",
            *(tag("li", tag("code", str(point)), f" {reason}") for point, reason in left_out),
        ),
        class_="left-out",
    )


def _toolbar() -> Markup:
    legend = [
        tag("span", tag("i", _GLYPHS[kind], class_=_CLASSES[kind], aria_hidden="true"), " ", kind)
        for kind in (HOLDS, FAILS, IDLE)
    ]
    return tag(
        "div",
        tag(
            "label",
            "Filter ",
            tag("input", type="search", id="filter", placeholder="suspend, record.libxc, kill …"),
        ),
        tag("label", tag("input", type="checkbox", id="only-wrong"), " only what does not hold"),
        tag("p", *legend, class_="legend", aria_label="Legend"),
        class_="toolbar",
    )


def _matrix(mode: str, entries: Sequence[_Entry]) -> Markup:
    cells: dict[tuple[Point, ActionKind], list[_Entry]] = {}
    for entry in entries:
        cells.setdefault((entry.aim.point, entry.aim.action.kind), []).append(entry)
    used = {kind for _point, kind in cells}
    groups = [
        (name, shown)
        for name, kinds in _GROUPS
        if (shown := [kind for kind in kinds if kind in used])
    ]
    first = {shown[0] for _name, shown in groups}
    columns = [kind for _name, shown in groups for kind in shown]
    points = [point for point in POINTS.values() if any((point, kind) in cells for kind in columns)]
    parts = [
        tag(
            "thead",
            tag(
                "tr",
                tag("td"),
                *(
                    tag("th", name, scope="colgroup", colspan=str(len(shown)), class_="first")
                    for name, shown in groups
                ),
                class_="groups",
            ),
            tag(
                "tr",
                tag("th", "Point", scope="col"),
                *(
                    tag(
                        "th",
                        tag("span", kind.name),
                        scope="col",
                        title=kind.doc,
                        class_="first" if kind in first else None,
                    )
                    for kind in columns
                ),
                class_="actions",
            ),
        )
    ]
    sections: dict[tuple[Who, Kind], list[Point]] = {}
    for point in points:
        sections.setdefault((point.who, point.kind), []).append(point)
    for (who, kind), members in sorted(sections.items(), key=lambda item: _order(*item[0])):
        title = f"{who.value.capitalize()} {_KINDS[kind]}".strip()
        heading = tag(
            "tr", tag("th", tag("span", title), scope="rowgroup", colspan=str(len(columns) + 1))
        )
        body = (_row(point, columns, first, cells) for point in members)
        parts.append(tag("tbody", heading, *body))
    caption = tag("caption", f"Points and actions in the mode {mode}", class_="unseen")
    table = tag("table", caption, *parts, class_="matrix")
    return tag("div", table, class_="scroll", tabindex="-1")


def _order(who: Who, kind: Kind) -> tuple[int, int]:
    return list(Who).index(who), list(_KINDS).index(kind)


def _row(
    point: Point,
    columns: Sequence[ActionKind],
    first: set[ActionKind],
    cells: Mapping[tuple[Point, ActionKind], Sequence[_Entry]],
) -> Markup:
    def cell(kind: ActionKind) -> Markup:
        edge = "first" if kind in first else None
        entries = cells.get((point, kind))
        return tag("td", *([_button(point, kind, entries)] if entries else []), class_=edge)

    name = tag("th", tag("code", str(point)), scope="row", title=point.doc)
    return tag("tr", name, *map(cell, columns))


def _button(point: Point, kind: ActionKind, entries: Sequence[_Entry]) -> Markup:
    kinds = [entry.verdict.kind for entry in entries]
    worst = next(one for one in _WORST if one in kinds)
    said = ", ".join(f"{kinds.count(one)} {one}" for one in _WORST if one in kinds)
    return tag(
        "button",
        _GLYPHS[worst],
        type="button",
        class_=f"cell {_CLASSES[worst]}",
        tabindex="-1",
        data_v=",".join(str(entry.number) for entry in entries),
        aria_label=f"{point} {kind.name}: {said}",
        title=f"{point} = {kind.name}\n{said}",
    )


def _list(entries: Sequence[_Entry]) -> Markup:
    """Of plans that have no place in a matrix, or of those to be looked at first."""
    columns = ("Verdict", "Mode", "Plan", "What is wrong", "Took")
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", *(tag("th", name, scope="col") for name in columns))),
            tag("tbody", *(_list_row(entry) for entry in entries)),
            class_="list",
        ),
        class_="scroll",
        tabindex="-1",
    )


def _list_row(entry: _Entry) -> Markup:
    verdict = entry.verdict
    kind = _CLASSES[verdict.kind]
    button = tag(
        "button",
        tag("code", verdict.plan),
        type="button",
        class_=f"open {kind}",
        tabindex="-1",
        data_v=str(entry.number),
    )
    return tag(
        "tr",
        tag("td", tag("span", f"{_GLYPHS[verdict.kind]} {verdict.kind}", class_=f"badge {kind}")),
        tag("td", verdict.mode),
        tag("td", button),
        tag("td", "" if verdict.holds else why(verdict)),
        tag("td", f"{verdict.seconds:.1f} s", class_="number"),
    )


def _dialog() -> Markup:
    """What the script fills in."""

    def button(name: str, text: str, label: str) -> Markup:
        return tag("button", text, type="button", id=name, aria_label=label, title=label)

    bar = tag(
        "div",
        button("previous", "←", "The cell before (←)"),
        button("next", "→", "The next cell (→)"),
        button("close", "✕", "Close (Esc)"),
        class_="buttons",
    )
    return tag(
        "dialog",
        tag("div", tag("h2", id="plan"), bar, class_="title"),
        tag("div", class_="content", id="content", tabindex="0"),
        id="details",
        aria_labelledby="plan",
    )
