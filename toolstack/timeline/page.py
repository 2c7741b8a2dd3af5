"""A picture as one HTML page that needs nothing else: no network, no other file.

All of it is in the markup, so that it can be read without JavaScript; page.js adds the zoom, moving
about by keyboard, and details of what is chosen.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack import self_contained
from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.chart import chart, ends_of
from xen_save_helper.toolstack.timeline.model import fields_of
from xen_save_helper.toolstack.timeline.picture import Downtime, Faults, Picture, Round, Row

_MOST_ROWS: Final = 3_000
"""Lines of the trace that a page shows."""
_MOST_FAILURES: Final = 100


def page(picture: Picture) -> str:
    """The whole page. What comes from a trace is text in it, whatever it contains."""
    body = "\n".join(part for part in _sections(picture) if part)
    return self_contained.page(__package__, "page", f"{picture.title} · timeline", body)


def _sections(picture: Picture) -> Iterator[str]:
    yield _header(picture)
    yield "<main>"
    yield chart(picture)
    if picture.failures:
        yield _failures(picture.failures)
    yield '<div class="cards">'
    if picture.downtime is not None:
        yield _downtime(picture.downtime)
    if picture.faults is not None:
        yield _faults(picture.faults)
    yield "</div>"
    if picture.rounds:
        yield _rounds(picture.rounds)
    yield _sources(picture)
    yield _events(picture.rows)
    yield "</main>"


def _header(picture: Picture) -> str:
    kind = {True: "good", False: "bad", None: "open"}[picture.good]
    figures = "".join(
        f"<li><b>{escape(value)}</b> {escape(name)}</li>" for name, value in picture.figures
    )
    begun = ""
    if picture.begun is not None and 0 <= picture.begun < 1 << 40:
        shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(picture.begun))
        begun = f" · begun {shown}"
    return (
        f'<header><p class="eyebrow">Xen save helper {escape(version())} · timeline{begun}</p>'
        f'<h1>{escape(picture.title)}</h1><p class="headline {kind}">'
        f'{escape(picture.headline)}</p><ul class="figures">{figures}</ul></header>'
    )


def _section(name: str, title: str, content: str, note: str = "") -> str:
    said = f'<p class="note">{escape(note)}</p>' if note else ""
    return (
        f'<section class="card {name}" aria-labelledby="{name}-title">'
        f'<h2 id="{name}-title">{escape(title)}</h2>{said}{content}</section>'
    )


def _table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    kinds: Sequence[str] = (),
    *,
    stacks: bool = True,
) -> str:
    """A table whose cells are HTML. If it `stacks`, each row is a list with the columns' names on a
    narrow screen. `kinds` are the classes of the columns."""
    classes = [*kinds, *[""] * (len(columns) - len(kinds))]
    head = "".join(
        f'<th scope="col" class="{kind}">{escape(name)}</th>'
        for name, kind in zip(columns, classes, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{kind}{"" if cell else " none"}" data-label="{escape(name)}">'
            f"<span>{cell}</span></td>"
            for name, kind, cell in zip(columns, classes, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    kind = "stacks" if stacks else "stays"
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _bar(share: float, kind: str) -> str:
    return (
        '<svg class="bar" aria-hidden="true">'
        f'<rect class="{kind}" width="{_percent(share)}" height="100%" rx="2"/></svg>'
    )


def _percent(share: float) -> str:
    return f"{max(0.0, min(1.0, share)) * 100:.3f}%"


def _downtime(downtime: Downtime) -> str:
    whole = downtime.seconds or 1.0
    stacked, at = [], 0.0
    for number, part in enumerate(downtime.parts):
        share = part.seconds / whole
        stacked.append(
            f'<rect class="part p{number % 6}" x="{_percent(at)}" width="{_percent(share)}" '
            f'height="100%"><title>{escape(part.name)}: {words.seconds(part.seconds)}</title>'
            "</rect>"
        )
        at += share
    rows = [
        (
            f'<i class="key p{number % 6}"></i>{escape(part.name)}',
            words.seconds(part.seconds),
            f"{part.seconds / whole * 100:.0f} %",
            escape(part.how),
        )
        for number, part in enumerate(downtime.parts)
    ]
    said = [f"From the request to suspend: {words.seconds(downtime.seconds)}."]
    if downtime.told is not None:
        said.append(f"The guest itself stood still for {words.seconds(downtime.told)}.")
    if downtime.missing:
        said.append(f"Not all of it: {downtime.missing}.")
    table = _table(
        ("part", "took", "share", "between"), rows, ("name", "number", "number", "between")
    )
    return _section(
        "downtime",
        "Downtime, taken apart",
        f'<svg class="stacked" role="img" aria-label="The parts of the downtime">'
        f"{''.join(stacked)}</svg>{table}",
        " ".join(said),
    )


def _faults(faults: Faults) -> str:
    said = [f"vCPUs waited for {words.counted(faults.count, 'missing page')}."]
    bounds = [
        f"{name} ≤ {words.seconds(value)}"
        for name, share in (("half of them", 0.5), ("99 %", 0.99))
        if (value := faults.at_most(share)) is not None
    ]
    if bounds:
        said.append(f"At the pager: {', '.join(bounds)}, longest {words.seconds(faults.longest)}.")
    if faults.told:
        own = ", ".join(f"{name} {value}" for name, value in faults.told)
        said.append(f"As the guest saw it: {own}.")
    content = ""
    if faults.classes:
        most = max(faults.classes)
        first = next(number for number, count in enumerate(faults.classes) if count)
        rows = [
            (
                f"{words.seconds(2**number / 2e6)} to {words.seconds(2**number / 1e6)}",
                words.number(count),
                _bar(count / most, "fault-bar"),
            )
            for number, count in enumerate(faults.classes)
            if number >= first
        ]
        columns = ("latency", "faults", "")
        content = _table(columns, rows, ("name", "number", "wide"), stacks=False)
    return _section("faults", "Page faults after the switch", content, " ".join(said))


def _rounds(rounds: Sequence[Round]) -> str:
    fastest = max((one.rate or 0.0 for one in rounds), default=0.0) or 1.0
    rows = []
    for one in rounds:
        rate = "" if one.rate is None else words.rate(one.rate)
        decision = f"<b>{escape(one.decision)}</b> {escape(one.why)}" if one.decision else ""
        rows.append(
            (
                escape(one.name),
                words.moment(one.start),
                words.seconds(one.seconds),
                words.number(one.pages),
                words.size(one.size) if one.size else "0",
                f"{rate}{_bar(one.rate / fastest, 'rate-bar') if one.rate else ''}",
                "" if one.dirty is None else words.number(one.dirty),
                decision,
            )
        )
    columns = ("round", "began at", "took", "pages", "size", "rate", "dirty after", "decision")
    kinds = ("name", *["number"] * 4, "number rate", "number", "why")
    return _section("rounds", "Rounds of memory", _table(columns, rows, kinds))


def _failures(failures: Sequence[Row]) -> str:
    rows = [
        (
            words.moment(row.at),
            escape(row.lane),
            f"<b>{escape(row.event)}</b>",
            escape("; ".join(f"{name} {value}" for name, value in row.details)),
        )
        for row in failures[:_MOST_FAILURES]
    ]
    more = len(failures) - len(rows)
    columns = ("time", "who", "what", "details")
    return _section(
        "failures",
        "What went wrong",
        _table(columns, rows, ("number", "who", "what", "why")),
        "In the order of time; the first is mostly the cause."
        + (f" {words.number(more)} more are among the events below." if more else ""),
    )


def _sources(picture: Picture) -> str:
    rows = [*fields_of(picture)]
    if picture.same_clock:
        rows.append(("clocks", "both sides have the same one: nothing had to be aligned"))
    rows += [("file", name) for name in picture.files]
    rows += [("note", note) for note in picture.notes]
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    return _section("sources", "Where this is from", f"<dl>{items}</dl>") if items else ""


def _events(rows: Sequence[Row]) -> str:
    all_of_them = [row for row in rows if not row.noise] if len(rows) > _MOST_ROWS else rows
    shown = ends_of(all_of_them, _MOST_ROWS)
    left_out = len(rows) - len(shown)
    body = "".join(
        f'<tr class="{" ".join(filter(None, ("noise" * row.noise, "bad" * row.bad)))}">'
        f'<td class="number" data-label="time"><span>{words.moment(row.at)}</span></td>'
        f'<td class="who" data-label="who"><span>{escape(row.lane)}</span></td>'
        f'<td class="what" data-label="what"><b>{escape(row.event)}</b></td>'
        f'<td class="why" data-label="details"><span>'
        f"{escape(' · '.join(f'{name} {value}' for name, value in row.details))}</span></td></tr>"
        for row in shown
    )
    noise = sum(1 for row in shown if row.noise)
    said = f"; {words.number(left_out)} are left out here" if left_out else ""
    return (
        f'<details class="card events"><summary>All {words.number(len(rows))} events of the trace'
        f"{said}</summary>"
        f'<input type="checkbox" id="noise"><label for="noise">'
        f"show {words.number(noise)} lines of log, progress and polling</label>"
        '<table class="stacks"><thead><tr><th scope="col" class="number">time</th>'
        '<th scope="col">who</th><th scope="col">what</th><th scope="col">details</th></tr></thead>'
        f"<tbody>{body}</tbody></table></details>"
    )
