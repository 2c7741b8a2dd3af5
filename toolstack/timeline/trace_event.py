"""A picture in the Trace Event Format, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

Each lane is a process, and each of its rows a thread, since the slices of a thread must nest.
Timestamps are in microseconds from the picture's beginning.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.timeline.model import fields_of
from xen_save_helper.toolstack.timeline.picture import Lane, Message, Picture

_FIGURES: Final = "figures"


def document(picture: Picture) -> dict[str, Any]:
    """The whole document, a JSON object."""
    return {
        "traceEvents": list(_events(picture)),
        "displayTimeUnit": "ms",
        "otherData": {
            "title": picture.title,
            "outcome": picture.headline,
            "made by": f"xen-save-helper {version()}",
            **dict(fields_of(picture)),
        },
    }


def text(picture: Picture) -> str:
    return json.dumps(document(picture), separators=(",", ":"))


def _events(picture: Picture) -> Iterator[dict[str, Any]]:
    names = [lane.name for lane in picture.lanes]
    for number, lane in enumerate(picture.lanes, 1):
        yield from _of_lane(picture, number, lane)
    figures = len(picture.lanes) + 1
    yield _metadata("process_name", figures, 0, name=_FIGURES)
    yield _metadata("process_sort_index", figures, 0, sort_index=figures)
    for counter in picture.counters:
        name = f"{counter.name} ({counter.unit})"
        for at, value in counter.points:
            yield {
                "ph": "C",
                "name": name,
                "pid": figures,
                "tid": 0,
                "ts": _at(picture, at),
                "args": {counter.name: round(value, 3)},
            }
    for identity, message in enumerate(picture.messages, 1):
        yield from _flow(picture, names, identity, message)


def _of_lane(picture: Picture, pid: int, lane: Lane) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", pid, 0, name=lane.name)
    if lane.note:
        yield _metadata("process_labels", pid, 0, labels=lane.note)
    yield _metadata("process_sort_index", pid, 0, sort_index=pid)
    for tid, row in enumerate(lane.rows, 1):
        yield _metadata("thread_name", pid, tid, name=lane.name)
        yield _metadata("thread_sort_index", pid, tid, sort_index=tid)
        after = [_at(picture, span.start) for span in row[1:]] + [math.inf]
        for span, next_start in zip(row, after, strict=True):
            start = _at(picture, span.start)
            end = min(_at(picture, span.end), next_start)
            yield {
                "ph": "X",
                "name": span.name,
                "cat": span.kind.value,
                "pid": pid,
                "tid": tid,
                "ts": start,
                "dur": round(max(0.0, end - start), 3),
                "args": {**dict(span.details), **({} if span.ended else {"ended": "no"})},
            }
    for mark in lane.marks:
        yield {
            "ph": "i",
            "s": "p",
            "name": mark.name,
            "cat": mark.kind.value,
            "pid": pid,
            "tid": 1,
            "ts": _at(picture, mark.at),
            "args": dict(mark.details),
        }


def _flow(
    picture: Picture, names: list[str], identity: int, message: Message
) -> Iterator[dict[str, Any]]:
    """An arrow between the steps in which a message was said and heard."""
    ends = ["source controller", "destination controller"]
    if not set(ends) <= set(names):
        return
    if not message.outward:
        ends.reverse()
    said, heard = message.said, max(message.said, message.heard)
    for phase, name, at in (("s", ends[0], said), ("f", ends[1], heard)):
        yield {
            "ph": phase,
            **({"bp": "e"} if phase == "f" else {}),
            "id": identity,
            "name": message.what,
            "cat": "message",
            "pid": names.index(name) + 1,
            "tid": 1,
            "ts": _at(picture, at),
        }


def _metadata(kind: str, pid: int, tid: int, /, **arguments: object) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": arguments}


def _at(picture: Picture, at: float) -> float:
    """Microseconds, none of them negative."""
    return round((at - picture.start) * 1e6, 3)
