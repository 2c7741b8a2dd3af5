"""The lanes of a picture: what each process, the link and the guest did when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from xen_save_helper.ipc_schema.trace_events import Writer
from xen_save_helper.toolstack.rules.handshake import Event
from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.moments import Moments, Place
from xen_save_helper.toolstack.timeline.operations import Operation
from xen_save_helper.toolstack.timeline.picture import (
    Details,
    Kind,
    Lane,
    Mark,
    Message,
    Round,
    Span,
    told,
)
from xen_save_helper.toolstack.timeline.sides import Side
from xen_save_helper.toolstack.timeline.trace_lines import Line

GUEST: Final = "guest"
LINK: Final = "link"

_NOISE: Final = frozenset({"log", "progress"})
"""Messages of which there are many."""
_POLLED: Final = "precopy_policy"
"""A callback that is made again and again; a decision has an event of its own."""
_BAD: Final = frozenset(
    {
        "failure",
        "consequence",
        "abort",
        "stranger_refused",
        "abort_not_sent",
        "cleanup_failed",
        "suspend_hold_failed",
        "helper_run",
        "pages_lost",
        "link",
        "link_silent",
        "no_report",
        "no_state",
        "stood_still",
        "without_the_sender",
        "fault",
    }
)
_GOOD_RESULTS: Final = frozenset(
    {
        None,
        Event.OK.value,
        Event.TRANSITIONED.value,
        Event.RESUMED.value,
        Event.PAGES_LEFT.value,
        Event.NOT_AWAITED.value,
    }
)
"""Of a step of the handshake."""
_SHOWN_AS_SPANS: Final = frozenset(
    {"handshake", "handshake_said", "handshake_heard", "phase", "round", "callback", "clock"}
)
_LITTLE: Final = frozenset(
    {"answer", "log", "helper_stderr", "restore_program_says", "postcopy_faults"}
)
"""Events that no lane marks: they are shown elsewhere, or say little."""


def is_bad(line: Line) -> bool:
    """Whether a line tells of a failure."""
    if line.event in _BAD:
        return True
    rc = line.get("rc")
    failed = isinstance(rc, int) and rc < 0
    if line.event in {"helper_exited", "receiver_exited", "restore_program_exited"}:
        return bool(line.get("status"))
    return failed or line.get("result") not in _GOOD_RESULTS


def is_noise(line: Line) -> bool:
    """Whether a line is one of many that say little."""
    if line.event in {"log", "answer", "clock"}:
        return True
    name = line.get("name")
    return line.event == "callback" and (name in _NOISE or name == _POLLED)


def lane_name(operation: Operation, side: Side, line: Line) -> str:
    """The lane of a line."""
    if line.process == Writer.LINK.value:
        return LINK
    what = (
        line.process
        if line.process in {Writer.HELPER.value, Writer.PAGE_SERVER.value}
        else "controller"
    )
    if not operation.migration:
        return what
    return f"{'source' if side.saves else 'destination'} {what}"


def lanes_of(
    operation: Operation,
    place: Place,
    moments: Moments,
    rounds: Sequence[Round],
    messages: Sequence[Message],
    end: float,
) -> Iterator[Lane]:
    """The lanes from top to bottom: the guest, the source, the link, the destination."""
    yield Lane(GUEST, operation.name, (tuple(_of_guest(operation, moments, end)),))
    if operation.source is not None:
        yield from _of_side(operation, operation.source, place, rounds)
    if operation.migration:
        yield _of_link(operation, place, rounds, messages)
    if operation.destination is not None:
        yield from reversed(list(_of_side(operation, operation.destination, place, ())))


# -- the guest ------------------------------------------------------------------------------------


def _of_guest(operation: Operation, moments: Moments, end: float) -> Iterator[Span]:
    """The guest's states, which follow each other."""
    here = "runs at the source" if operation.migration else "runs"
    states: list[tuple[float, str, Kind]] = []
    if operation.source is not None:
        states.append((0.0, here, Kind.RUNS))
    if moments.suspend_asked is not None:
        states.append((moments.suspend_asked.at, "stands still", Kind.STANDS))
    if moments.runs_here is not None:
        states.append((moments.runs_here.at, "runs on at the source", Kind.RUNS))
    elif moments.runs_there is not None:
        arrives = moments.postcopy
        states.append(
            (moments.runs_there.at, "runs, pages arrive", Kind.ARRIVES)
            if arrives
            else (moments.runs_there.at, "runs at the destination", Kind.RUNS)
        )
        if arrives and moments.all_there is not None:
            states.append((moments.all_there.at, "runs at the destination", Kind.RUNS))
        if moments.lost_there is not None:
            states.append((moments.lost_there.at, "is gone there", Kind.STANDS))
    if moments.died is not None:
        states.append((moments.died.at, "has died", Kind.STANDS))
    ends = [*(at for at, _name, _kind in states), end][1:]
    for (at, name, kind), until in zip(states, ends, strict=True):
        # Still suspended, or still without its pages, when the trace ends.
        open_end = until == end and kind in {Kind.STANDS, Kind.ARRIVES} and moments.died is None
        yield Span(at, max(at, until), name, kind, ended=not open_end)


# -- controllers and helpers ----------------------------------------------------------------------


def _of_side(
    operation: Operation, side: Side, place: Place, rounds: Sequence[Round]
) -> Iterator[Lane]:
    by_lane: dict[str, list[Line]] = {}
    for line in side.lines:
        by_lane.setdefault(lane_name(operation, side, line), []).append(line)
    by_lane.pop(LINK, None)
    for name in sorted(by_lane, key=_order):
        lines = by_lane[name]
        if "controller" in name:
            spans = [*_steps(lines, place), *_answered(lines, place)]
        else:
            spans = [*_phases(lines, place), *_called(lines, place)]
            if lines[0].process == Writer.HELPER.value:
                spans += _as_spans(rounds)
        pids = sorted({line.pid for line in lines})
        note = f"pid {', '.join(map(str, pids))}"
        yield Lane(name, note, packed(spans), tuple(_marks(lines, place)))


def _order(name: str) -> int:
    """Controllers are on the outside, and what speaks over the link is next to it."""
    for position, what in enumerate(("controller", "helper", "page server")):
        if name.endswith(what):
            return position
    return 3


def packed(spans: Iterable[Span]) -> tuple[tuple[Span, ...], ...]:
    """The spans in rows of which none overlaps; what begins first and lasts longest is on top."""
    rows: list[list[Span]] = []
    for span in sorted(spans, key=lambda one: (one.start, -one.end)):
        row = next((row for row in rows if row[-1].end <= span.start + 1e-6), None)
        if row is None:
            rows.append([span])
        else:
            row.append(span)
    return tuple(tuple(row) for row in rows)


def _steps(lines: Sequence[Line], place: Place) -> Iterator[Span]:
    """The steps of the handshake: each lasts until the next one begins."""
    begun: tuple[float, str] | None = None
    for line in lines:
        if line.event not in {"handshake", "migrated", "received"}:
            continue
        at = place(line)
        result = line.get("result")
        if begun is not None:
            details: Details = () if result is None else (("result", words.text(result)),)
            kind = Kind.STEP if result in _GOOD_RESULTS else Kind.FAILURE
            yield Span(begun[0], at, begun[1], kind, details)
            begun = None
        if line.event == "handshake" and result is None:
            begun = at, str(line.get("action"))
    if begun is not None:
        yield Span(begun[0], place(lines[-1]), begun[1], Kind.STEP, ended=False)


def _answered(lines: Sequence[Line], place: Place) -> Iterator[Span]:
    """The callbacks that a controller was busy with, until it answered them."""
    asked: dict[str, Line] = {}
    for line in lines:
        name = line.get("name")
        if not isinstance(name, str) or name == _POLLED:
            continue
        if line.event == "callback":
            asked[name] = line
        elif line.event == "answer" and name in asked:
            call = asked.pop(name)
            details = (*_without_name(call), ("answer", words.text(line.get("value"))))
            yield Span(place(call), place(line), name, Kind.CALLBACK, details)


def _phases(lines: Sequence[Line], place: Place) -> Iterator[Span]:
    begun: dict[tuple[int, str], float] = {}
    for line in lines:
        if line.event == "failure" and isinstance(line.get("phase"), str):
            key = line.pid, line.get("phase")
            if key in begun:
                yield Span(begun.pop(key), place(line), key[1], Kind.FAILURE, told(line.fields))
        if line.event != "phase":
            continue
        key = line.pid, str(line.get("name"))
        if line.get("state") == "begin":
            begun[key] = place(line)
        elif key in begun:
            yield Span(begun.pop(key), place(line), key[1], Kind.PHASE)
    for (pid, name), start in begun.items():
        last = max(place(line) for line in lines if line.pid == pid)
        yield Span(start, last, name, Kind.PHASE, ended=False)


def _called(lines: Sequence[Line], place: Place) -> Iterator[Span]:
    """The callbacks that a helper waited for."""
    for line in lines:
        took = line.get("seconds")
        if line.event != "callback" or not isinstance(took, int | float):
            continue
        name = str(line.get("name"))
        if name == _POLLED:
            continue
        at = place(line)
        yield Span(at - float(took), at, name, Kind.CALLBACK, _without_name(line))


def _without_name(line: Line) -> Details:
    return tuple(pair for pair in told(line.fields) if pair[0] not in {"name", "seconds"})


def _as_spans(rounds: Sequence[Round]) -> list[Span]:
    spans = []
    for one in rounds:
        details: list[tuple[str, str]] = [
            ("pages", words.number(one.pages)),
            ("size", words.size(one.size)),
        ]
        if one.rate is not None:
            details.append(("rate", words.rate(one.rate)))
        if one.dirty is not None:
            details.append(("dirty after it", words.counted(one.dirty, "page")))
        spans.append(Span(one.start, one.end, one.name, Kind.ROUND, tuple(details)))
    return spans


def _marks(lines: Sequence[Line], place: Place) -> Iterator[Mark]:
    for line in lines:
        if line.event == "fault":
            yield Mark(place(line), f"injected: {line.get('fault')}", Kind.INJECTED)
        elif line.event == "precopy_policy":
            decision = line.get("answer") or line.get("decision")
            yield Mark(
                place(line), f"{decision}: {line.get('why')}", Kind.DECISION, told(line.fields)
            )
        elif is_bad(line):
            yield Mark(place(line), _in_words(line), Kind.FAILURE, told(line.fields))
        elif line.event not in _SHOWN_AS_SPANS | _LITTLE:
            yield Mark(place(line), line.event, Kind.EVENT, told(line.fields))


def _in_words(line: Line) -> str:
    for name in ("reason", "error", "trouble", "text", "result"):
        value = line.get(name)
        if isinstance(value, str) and value:
            return f"{line.event}: {words.text(value)}"
    return line.event


# -- the link -------------------------------------------------------------------------------------


def messages_of(operation: Operation, place: Place) -> Iterator[Message]:
    """The messages of the handshake that were heard, if both sides are known."""
    source, destination = operation.source, operation.destination
    if source is None or destination is None:
        return
    for says, hears in ((source, destination), (destination, source)):
        heard = {line.get("message"): place(line) for line in hears.named("handshake_heard")}
        for line in says.named("handshake_said"):
            name = line.get("message")
            if isinstance(name, str) and name in heard:
                yield Message(place(line), heard[name], name, outward=says.saves)


def _of_link(
    operation: Operation, place: Place, rounds: Sequence[Round], messages: Sequence[Message]
) -> Lane:
    spans = [
        Span(
            one.said,
            max(one.said, one.heard),
            f"{'→' if one.outward else '←'} {one.what}",
            Kind.MESSAGE,
            (("on its way", words.seconds(one.heard - one.said)),),
        )
        for one in messages
    ]
    spans += [
        Span(
            one.start,
            one.end,
            f"→ {words.size(one.size)}",
            Kind.STREAM,
            (("what", one.name), ("rate", words.rate(one.rate) if one.rate else "unknown")),
        )
        for one in rounds
        if one.size
    ]
    lines = [line for side in operation.sides for line in side.lines if line.process == LINK]
    spans += _of_postcopy(operation, place)
    return Lane(LINK, "", packed(spans), tuple(_marks(lines, place)))


def _of_postcopy(operation: Operation, place: Place) -> Iterator[Span]:
    """The pages that a helper sends while the guest runs at the destination."""
    side = operation.source or operation.destination
    assert side is not None
    begun = None
    for line in side.named("phase"):
        if line.get("name") != "postcopy pages":
            continue
        if line.get("state") == "begin":
            begun = place(line)
        elif begun is not None:
            pages = side.value("pages", "postcopy_pfns")
            shown = f"→ {words.size(pages * words.PAGE_SIZE)}" if isinstance(pages, int) else "→"
            yield Span(begun, place(line), shown, Kind.STREAM, (("what", "postcopy pages"),))
