"""The tables of a campaign's page: the matrix of points and actions, and lists of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from xen_save_helper.ipc_schema.faults import actions as fault_actions
from xen_save_helper.ipc_schema.faults.actions import DEATHS, DIE, Action, ActionKind
from xen_save_helper.ipc_schema.faults.points import POINTS, Kind, Point, Who
from xen_save_helper.toolstack.campaign.report.figures import FAILS, HOLDS, IDLE, why
from xen_save_helper.toolstack.campaign.report.html_data import CLASSES, Entry
from xen_save_helper.toolstack.campaign.report.markup import Markup, tag

GLYPHS: Final[Mapping[str, str]] = {HOLDS: "✓", FAILS: "✗", IDLE: "○"}
_WORST: Final = (FAILS, IDLE, HOLDS)
_KINDS: Final[Mapping[Kind, str]] = {
    Kind.MILESTONE: "milestones",
    Kind.MESSAGE: "messages",
    Kind.HANDSHAKE: "handshake",
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


def matrix(mode: str, entries: Sequence[Entry]) -> Markup:
    cells: dict[tuple[Point, ActionKind], list[Entry]] = {}
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
    cells: Mapping[tuple[Point, ActionKind], Sequence[Entry]],
) -> Markup:
    def cell(kind: ActionKind) -> Markup:
        edge = "first" if kind in first else None
        entries = cells.get((point, kind))
        return tag("td", *([_button(point, kind, entries)] if entries else []), class_=edge)

    name = tag("th", tag("code", str(point)), scope="row", title=point.doc)
    return tag("tr", name, *map(cell, columns))


def _button(point: Point, kind: ActionKind, entries: Sequence[Entry]) -> Markup:
    kinds = [entry.verdict.kind for entry in entries]
    worst = next(one for one in _WORST if one in kinds)
    said = ", ".join(f"{kinds.count(one)} {one}" for one in _WORST if one in kinds)
    # As it is typed, and looked for.
    done = {entry.aim.action for entry in entries}
    deaths = [name for name, signal in DEATHS.items() if Action(DIE, signal) in done]
    name = f"{kind.name} ({', '.join(deaths)})" if deaths else kind.name
    return tag(
        "button",
        GLYPHS[worst],
        type="button",
        class_=f"cell {CLASSES[worst]}",
        tabindex="-1",
        data_v=",".join(str(entry.number) for entry in entries),
        aria_label=f"{point} {name}: {said}",
        title=f"{point} = {name}\n{said}",
    )


def rows_of(entries: Sequence[Entry]) -> Markup:
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


def _list_row(entry: Entry) -> Markup:
    verdict = entry.verdict
    kind = CLASSES[verdict.kind]
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
        tag("td", tag("span", f"{GLYPHS[verdict.kind]} {verdict.kind}", class_=f"badge {kind}")),
        tag("td", verdict.mode),
        tag("td", button),
        tag("td", "" if verdict.holds else why(verdict)),
        tag("td", f"{verdict.seconds:.1f} s", class_="number"),
    )
