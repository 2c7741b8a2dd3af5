"""The timelines of fault runs, which their reports link."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from xen_save_helper.toolstack.campaign.report.figures import Report
from xen_save_helper.toolstack.timeline.files import picture_of, write_page
from xen_save_helper.toolstack.timeline.operations import Operation, find_operations
from xen_save_helper.toolstack.timeline.picture import Picture
from xen_save_helper.toolstack.timeline.trace_lines import parse_trace

DIRECTORY: Final = "timelines"


def write_timelines(report: Report, directory: Path, *, every: bool) -> dict[int, str]:
    """Write a timeline for each verdict that is wrong, or for `every` one, below
    `directory`; returns their places from there on, by the verdicts' numbers. Raises OSError."""
    found = {}
    for number, verdict in enumerate(report.verdicts):
        if not every and not report.is_wrong(verdict):
            continue
        picture = picture_of_run(report.trace(verdict), verdict.plan)
        if picture is None:
            continue
        place = f"{DIRECTORY}/{number}.html"
        path = directory / place
        path.parent.mkdir(exist_ok=True)
        write_page(picture, path)
        found[number] = place
    return found


def picture_of_run(events: Sequence[Mapping[str, Any]], plan: str) -> Picture | None:
    """The picture of a run's trace; None if nothing has begun. A run may save and then restore: it
    is the operation that the first fault struck, or else the first."""
    lines = [json.dumps(event, default=str).encode() + b"\n" for event in events]
    file = parse_trace(f"faults run {plan}", lines)
    operations = find_operations([file])
    if not operations:
        return None
    return picture_of([file], next(filter(_was_struck, operations), operations[0]))


def _was_struck(operation: Operation) -> bool:
    return any(line.event == "fault" for side in operation.sides for line in side.lines)
