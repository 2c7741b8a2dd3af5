"""Draws the picture of an operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from xen_save_helper.toolstack.timeline import words
from xen_save_helper.toolstack.timeline.clocks import Alignment, align
from xen_save_helper.toolstack.timeline.figures import counters_of, faults_of, rounds_of
from xen_save_helper.toolstack.timeline.lanes import (
    is_bad,
    is_noise,
    lane_name,
    lanes_of,
    messages_of,
)
from xen_save_helper.toolstack.timeline.moments import Moments, Place, downtime_of, moments_of
from xen_save_helper.toolstack.timeline.operations import Operation, offset_of, wall_offset
from xen_save_helper.toolstack.timeline.picture import Details, Downtime, Picture, Round, Row
from xen_save_helper.toolstack.timeline.trace_lines import Line

_OUTCOMES: Final = {
    "success": "migrated: the guest runs at the destination",
    "running-at-source": "not migrated: the guest runs at the source",
    "postcopy-failed": "failed after the postcopy transition: the guest is suspended at the source",
    "undefined": "undefined: the link was lost after GO, look at both ends",
    "guest-died": "the guest itself died",
}

_ENDS: Final = frozenset(
    {"helper_result", "save_ended", "restore_ended", "received", "receiver_exited", "migrated"}
)


def draw(operation: Operation, files: Sequence[str] = (), notes: Sequence[str] = ()) -> Picture:
    """The picture of an operation. `files` and `notes` are told at its end."""
    alignment = _alignment(operation)
    place = _placed(operation, alignment)
    lines = [(side, line) for side in operation.sides for line in side.lines]
    end = max(place(line) for _side, line in lines)
    moments = moments_of(operation, place)
    rounds = () if operation.source is None else tuple(rounds_of(operation.source, place))
    messages = tuple(messages_of(operation, place))
    downtime = downtime_of(operation, moments)
    faults = faults_of(operation)
    rows = tuple(
        sorted(
            (
                Row(
                    place(line),
                    lane_name(operation, side, line),
                    line.event,
                    line.fields,
                    is_noise(line),
                    is_bad(line),
                )
                for side, line in lines
            ),
            key=lambda row: row.at,
        )
    )
    headline, good = _headline(operation)
    return Picture(
        title=_title(operation),
        headline=headline,
        good=good,
        begun=operation.realtime,
        start=min(0.0, rows[0].at),
        end=end,
        figures=tuple(_figures(operation, end, downtime, rounds, moments)),
        lanes=tuple(lanes_of(operation, place, moments, rounds, messages, end)),
        counters=tuple(counters_of(operation, place, rounds, moments, end)),
        messages=messages,
        rounds=rounds,
        downtime=downtime,
        faults=faults,
        failures=_told_once([row for row in rows if row.bad]),
        rows=rows,
        alignment=alignment,
        same_clock=alignment is None and len(operation.sides) > 1,
        files=tuple(files),
        notes=(*notes, *_missing(operation)),
    )


def _told_once(bad: Sequence[Row]) -> tuple[Row, ...]:
    """Without the ends that only repeat a failure that was told."""
    first_hand = tuple(row for row in bad if row.event not in _ENDS)
    return first_hand or tuple(bad)


def _alignment(operation: Operation) -> Alignment | None:
    """None if there is nothing to align."""
    source, destination = operation.source, operation.destination
    if source is None or destination is None or source.clock == destination.clock:
        return None
    return align(offset_of(source, destination), wall_offset(source, destination))


def _placed(operation: Operation, alignment: Alignment | None) -> Place:
    first = operation.sides[0]
    offset = 0.0 if alignment is None else alignment.offset
    starts = [first.start]
    if operation.destination is not None and operation.source is not None:
        starts.append(operation.destination.start - offset)
    zero = min(starts)

    def place(line: Line) -> float:
        return line.t - (offset if line.clock != first.clock else 0.0) - zero

    return place


def _title(operation: Operation) -> str:
    title = f"{operation.kind.capitalize()} of {operation.name}"
    if operation.source is not None:
        mode = operation.source.value("mode", "migrated") or operation.source.value(
            "strategy", "save"
        )
        if operation.migration and isinstance(mode, str):
            title += f": {mode}"
    return words.text(title)


def _headline(operation: Operation) -> tuple[str, bool | None]:
    """How it ended, by the last that its trace says; and whether well."""
    source, destination = operation.source, operation.destination
    if source is not None:
        for line in source.named("migrated"):
            outcome = str(line.get("outcome"))
            reason = words.text(line.get("reason") or "")
            said = _OUTCOMES.get(outcome, outcome)
            return f"{said}{f' ({reason})' if reason else ''}", outcome == "success"
    for side in (source, destination):
        if side is None:
            continue
        what = "saved" if side.saves else "restored"
        for line in side.named("save_ended", "restore_ended"):
            reason = words.text(side.value("reason", "failure") or "")
            if line.get("rc") == 0:
                return what, True
            return f"not {what}{f': {reason}' if reason else ''}", False
    ends = [line for side in operation.sides for line in side.named("complete")]
    if any(line.get("retval") != 0 for line in ends):
        errors = (side.value("error", "failure") for side in operation.sides)
        error = next((words.text(one) for one in errors if one), "")
        return f"a helper failed{f': {error}' if error else ''}", False
    if ends and len(ends) >= len(operation.sides):
        both = "both helpers have" if len(operation.sides) > 1 else "the helper has"
        return f"{both} succeeded", True
    return "the trace ends before the operation does", None


def _figures(
    operation: Operation,
    end: float,
    downtime: Downtime | None,
    rounds: Sequence[Round],
    moments: Moments,
) -> Iterator[tuple[str, str]]:
    yield "took", words.seconds(end)
    if downtime is not None and operation.migration:
        told = downtime.told
        if told is not None:
            yield "stood still", words.seconds(told)
        elif downtime.whole:
            yield "stood still", words.seconds(downtime.seconds)
    source = operation.source
    size = None if source is None else source.stream_bytes
    if isinstance(size, int):
        yield "stream", words.size(size)
    elif total := sum(one.size for one in rounds):
        yield "memory sent", words.size(total)
    if rounds:
        yield "rounds", words.number(sum(1 for one in rounds if one.pages))
    if moments.postcopy and source is not None:
        left = source.value("pages", "postcopy_pfns")
        if isinstance(left, int):
            yield "left to postcopy", words.counted(left, "page")


def _missing(operation: Operation) -> Iterator[str]:
    """What the traces lack."""
    if operation.migration and operation.destination is None:
        yield (
            "The destination's trace is not among these files: its receiver writes one with "
            "--events FILE, or with XEN_SAVE_HELPER_EVENTS under xl."
        )
    if operation.migration and operation.source is None:
        yield "The source's trace is not among these files."
    if not any(side.controlled for side in operation.sides):
        yield (
            "No controller of ours took part: what xl did, and when it let the guest run, is not "
            "in the trace."
        )


def fields_of(picture: Picture) -> Details:
    """What there is to say about the clocks."""
    alignment = picture.alignment
    if alignment is None:
        return ()
    error = "unknown" if alignment.error == float("inf") else f"± {words.seconds(alignment.error)}"
    if not alignment.sure and alignment.error != float("inf"):
        error += ", if both machines' clocks are right"
    return (
        ("the destination's clock is ahead by", words.offset(alignment.offset)),
        ("which may be wrong by", error),
        ("aligned", alignment.how),
    )
