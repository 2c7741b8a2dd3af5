"""The lanes of a picture as HTML and SVG.

Places are percentages of the width, so that the chart fits any screen, and grows if it is zoomed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html import escape
from typing import Final, TypeVar

from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.picture import (
    Counter,
    Details,
    Kind,
    Lane,
    Mark,
    Picture,
    Span,
)

_ROW: Final = 22
"""Pixels of a row of spans; a span has 18."""
_SPAN: Final = 18
_MARKS: Final = 16
"""Pixels of the row of marks."""
_COUNTER: Final = 44
_AXIS: Final = 26
_MARGIN: Final = 0.02
"""Of the width, left free at the end."""
_WIDTH: Final = 1000
"""Pixels that the chart is likely to have, without JavaScript to tell."""
_LETTER: Final = 6.4
"""Pixels of a letter."""
_TICKS: Final = 6
_STEPS: Final = (1, 2, 5)

_MOST: Final = 1_000
"""Spans in a row, and marks in a lane, that are drawn."""

T = TypeVar("T")

_SHAPES: Final = {
    Kind.DECISION: "M0-6 6 0 0 6-6 0Z",
    Kind.FAILURE: "M-5-3-3-5 0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0Z",
    Kind.INJECTED: "M1-7-4 1-1 1-2 7 4-2 1-2 3-7Z",
    Kind.EVENT: "M-1-4h2v8h-2z",
}
_LEGEND: Final = (
    (Kind.DECISION, "decision of the policy"),
    (Kind.FAILURE, "failure"),
    (Kind.INJECTED, "injected fault"),
    (Kind.EVENT, "event"),
)


def chart(picture: Picture) -> str:
    """The section with the chart and its controls."""
    drawing = _Drawing(picture)
    lanes = "".join(drawing.lane(lane) for lane in picture.lanes)
    counters = "".join(drawing.counter(counter) for counter in picture.counters)
    used = {mark.kind for lane in picture.lanes for mark in lane.marks}
    legend = "".join(
        f'<li><svg class="glyph mark {kind.value}" viewBox="-8 -8 16 16" aria-hidden="true">'
        f'<path d="{_SHAPES[kind]}"/></svg>{text}</li>'
        for kind, text in _LEGEND
        if kind in used
    )
    still = ""
    if drawing.band is not None:
        start, end = drawing.band
        still = (
            f'<button type="button" id="zoom-downtime" data-from="{start:.6f}" '
            f'data-to="{end:.6f}">Downtime</button>'
        )
    return (
        '<section class="card chart-card" aria-labelledby="chart-title">'
        '<div class="bar-line"><h2 id="chart-title">What happened when</h2>'
        '<div class="tools" hidden><button type="button" id="zoom-out" aria-label="Zoom out">'
        '&minus;</button><button type="button" id="zoom-in" aria-label="Zoom in">+</button>'
        f'<button type="button" id="zoom-all">Whole</button>{still}</div></div>'
        '<noscript><p class="note">Point at a bar to see what it is; all figures are in the '
        "tables below. Zoom and keys need JavaScript.</p></noscript>"
        f'<div class="chart" role="group" aria-label="Lanes over time; arrow keys move between '
        f'what is in them, plus and minus zoom" data-start="{drawing.first:.9f}" '
        f'data-seconds="{drawing.width:.9f}"><div class="canvas">{drawing.axis()}{lanes}{counters}'
        "</div></div>"
        f'<div class="under"><ul class="legend">{legend}</ul>'
        '<p class="keys" hidden><kbd>←</kbd> <kbd>→</kbd> <kbd>↑</kbd> <kbd>↓</kbd> move, '
        "<kbd>+</kbd> <kbd>&minus;</kbd> zoom, <kbd>0</kbd> whole</p></div>"
        '<div id="details" aria-live="polite" hidden></div></section>'
    )


class _Drawing:
    """What is drawn for one picture. `first` is the time at the left edge, `width` that between
    the edges."""

    def __init__(self, picture: Picture) -> None:
        self.first = picture.start
        self.width = max(picture.seconds, 1e-6) * (1 + _MARGIN)
        down = picture.downtime
        self.band = None if down is None else (down.start, down.end)
        self._chosen = False

    def x(self, at: float) -> str:
        return f"{(at - self.first) / self.width * 100:.5f}%"

    def _breadth(self, seconds: float) -> float:
        return max(0.0, seconds) / self.width * 100

    def _reach(self) -> str:
        """Where the guest stood still, behind everything else."""
        if self.band is None:
            return ""
        start, end = self.band
        return (
            f'<rect class="band" x="{self.x(start)}" width="{self._breadth(end - start):.5f}%" '
            'height="100%"/>'
        )

    def axis(self) -> str:
        ticks = "".join(
            f'<line x1="{self.x(at)}" x2="{self.x(at)}" y1="18" y2="{_AXIS}"/>'
            f'<text x="{self.x(at)}" y="13" class="{"first" if not at else ""}">'
            f"{escape(words.seconds(at))}</text>"
            for at in _ticks(self.first, self.width / (1 + _MARGIN))
        )
        return (
            '<div class="lane axis"><div class="label"><b>time</b></div>'
            f'<svg class="track" height="{_AXIS}" aria-hidden="true">{self._reach()}'
            f'<g id="ticks">{ticks}</g></svg></div>'
        )

    def lane(self, lane: Lane) -> str:
        rows = len(lane.rows) if any(lane.rows) else 0
        shown_marks = ends_of(lane.marks, _MOST)
        left_out = len(lane.marks) - len(shown_marks)
        height = rows * _ROW + (_MARKS if lane.marks else 0) + 6
        spans = "".join(
            self._span(span, 4 + number * _ROW)
            for number, row in enumerate(lane.rows)
            for span in ends_of(row, _MOST)
        )
        marks = "".join(self._mark(mark, rows * _ROW + 4 + _MARKS / 2) for mark in shown_marks)
        left_out += sum(max(0, len(row) - _MOST) for row in lane.rows)
        notes = [lane.note, f"{words.number(left_out)} not shown" if left_out else ""]
        note = "".join(f" <small>{escape(one)}</small>" for one in notes if one)
        return (
            f'<div class="lane" data-lane="{escape(lane.name)}">'
            f'<div class="label"><b>{escape(lane.name)}</b>{note}</div>'
            f'<svg class="track" height="{height}" role="group" '
            f'aria-label="{escape(lane.name)}">{self._reach()}{spans}{marks}</svg></div>'
        )

    def _span(self, span: Span, y: float) -> str:
        breadth = self._breadth(span.end - span.start)
        fits = breadth / 100 * _WIDTH >= len(span.name) * _LETTER + 10
        x, width = self.x(span.start), f"{breadth:.5f}%"
        took = words.seconds(span.seconds) + ("" if span.ended else ", not ended in the trace")
        details = (("took", took), ("from", words.moment(span.start)), *span.details)
        classes = ["item", "span", span.kind.value, *["tight"] * (not fits)]
        classes += ["cut"] * (not span.ended)
        item = self._item(span.start, span.end, span.name, details)
        return (
            f'<g class="{" ".join(classes)}" {item}>'
            f"<title>{escape(span.name)}: {escape(took)}</title>"
            f'<rect x="{x}" y="{y}" width="2" height="{_SPAN}"/>'
            f'<rect x="{x}" y="{y}" width="{width}" height="{_SPAN}" rx="2"/>'
            f'<svg x="{x}" y="{y}" width="{width}" height="{_SPAN}">'
            f'<text x="5" y="13">{escape(span.name)}</text></svg></g>'
        )

    def _mark(self, mark: Mark, y: float) -> str:
        details = (("at", words.moment(mark.at)), *mark.details)
        return (
            f'<svg class="item mark {mark.kind.value}" x="{self.x(mark.at)}" y="{y}" '
            f'overflow="visible" {self._item(mark.at, mark.at, mark.name, details)}>'
            f"<title>{escape(mark.name)}</title>"
            f'<path d="{_SHAPES[mark.kind]}"/></svg>'
        )

    def _item(self, start: float, end: float, name: str, details: Details) -> str:
        """What every span and mark has: one of them can be reached by the tabulator key."""
        tabindex = -1 if self._chosen else 0
        self._chosen = True
        told = escape(json.dumps(details, ensure_ascii=False))
        label = escape(f"{name}: {', '.join(f'{key} {value}' for key, value in details[:2])}")
        return (
            f'tabindex="{tabindex}" role="button" aria-label="{label}" data-from="{start:.6f}" '
            f'data-to="{end:.6f}" data-name="{escape(name)}" data-details="{told}"'
        )

    def counter(self, counter: Counter) -> str:
        most = max((value for _at, value in counter.points), default=0.0)
        shown = (
            words.rate(most) if counter.unit == "B/s" else f"{words.number(most)}{_unit(counter)}"
        )
        path = " ".join(self._path(counter, most or 1.0))
        return (
            '<div class="lane counter"><div class="label">'
            f"<b>{escape(counter.name)}</b> <small>up to {escape(shown)}</small></div>"
            f'<svg class="track" height="{_COUNTER}" role="img" '
            f'aria-label="{escape(counter.name)}, up to {escape(shown)}">{self._reach()}'
            f'<svg viewBox="0 0 1000 {_COUNTER}" preserveAspectRatio="none" width="100%" '
            f'height="{_COUNTER}"><path class="{escape(counter.name)}" d="{path}"/></svg>'
            "</svg></div>"
        )

    def _path(self, counter: Counter, most: float) -> Iterator[str]:
        floor = _COUNTER - 4
        started = False
        for at, value in counter.points:
            x = (at - self.first) / self.width * 1000
            y = floor - value / most * (_COUNTER - 10)
            yield f"M{x:.3f} {floor} V{y:.2f}" if not started else f"H{x:.3f} V{y:.2f}"
            started = True
        if started:
            yield f"V{floor} Z"


def ends_of(items: Sequence[T], most: int) -> Sequence[T]:
    """At most `most` of them: the first and the last."""
    if len(items) <= most:
        return items
    return [*items[: most // 2], *items[-(most // 2) :]]


def _unit(counter: Counter) -> str:
    return counter.unit if counter.unit.startswith("/") else f" {counter.unit}"


def _ticks(first: float, seconds: float) -> Iterator[float]:
    """Round times, at most `_TICKS` of them."""
    step = 1e-6
    number = 0
    while seconds / step > _TICKS:
        number += 1
        step = 10.0 ** (number // len(_STEPS) - 6) * _STEPS[number % len(_STEPS)]
    at = -(-first // step)
    while at * step <= first + seconds:
        yield at * step
        at += 1
