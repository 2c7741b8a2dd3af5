"""A campaign as one HTML page that needs nothing else: no network, no other file.

For each mode a matrix of points and actions; a cell opens what was expected, what was seen, and
the trace as a timeline of both sides. The traces are compressed, a row of the matrix at a time,
and are unpacked by the page when they are looked at.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path

from xen_save_helper.ipc_schema.faults.points import POINTS
from xen_save_helper.toolstack.campaign import reach
from xen_save_helper.toolstack.campaign.report.figures import (
    FAILS,
    HOLDS,
    IDLE,
    Report,
    headline,
    tally,
)
from xen_save_helper.toolstack.campaign.report.html_data import CLASSES, Entry, entries_of, index_of
from xen_save_helper.toolstack.campaign.report.html_tables import GLYPHS, matrix, rows_of
from xen_save_helper.toolstack.campaign.report.markup import Markup, join, raw, tag


def write(report: Report, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page(report), encoding="utf-8", errors="backslashreplace")


def page(report: Report) -> str:
    entries, blocks = entries_of(report)
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
        raw("script", _json(index_of(entries)), type="application/json", id="index"),
        *(raw("script", block, type="text/plain", class_="block") for block in blocks),
        raw("script", script),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def _resource(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _json(value: object) -> str:
    """JSON that may stand in a script."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), default=str)
    return text.replace("<", "\\u003c")


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
        tag("p", f"Xen save helper {report.version} · fault injection", class_="eyebrow"),
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
            f"{total.runs:,} runs of real processes on two simulated hosts, in {total.whole:,} of "
            "which every fault of the plan fired; "
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


def _panels(report: Report, entries: Sequence[Entry]) -> Iterator[Markup]:
    tabs: list[tuple[str, str, Markup, int]] = []
    wrong = [entry for entry in entries if report.is_wrong(entry.verdict)]
    if wrong:
        tabs.append(("wrong", "What does not hold", rows_of(wrong), len(wrong)))
    for mode in report.modes:
        of = [entry for entry in entries if entry.verdict.mode == mode]
        single = [entry for entry in of if entry.in_matrix]
        several = [entry for entry in of if not entry.in_matrix]
        parts = [matrix(mode, single)] if single else []
        if several:
            parts.append(rows_of(several))
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
    nothing = "Nothing here is like that: the filter, or the box beside it, leaves nothing to show."
    yield tag("p", nothing, id="nothing", class_="nothing", role="status", hidden=True)
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
        tag("span", tag("i", GLYPHS[kind], class_=CLASSES[kind], aria_hidden="true"), " ", kind)
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
