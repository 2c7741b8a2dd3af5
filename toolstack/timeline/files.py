"""From traces to the files that show them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from xen_save_helper.toolstack.timeline import page, trace_event
from xen_save_helper.toolstack.timeline.model import draw
from xen_save_helper.toolstack.timeline.operations import Operation, find_operations
from xen_save_helper.toolstack.timeline.picture import Picture
from xen_save_helper.toolstack.timeline.trace_lines import TraceFile


def picture_of(files: Sequence[TraceFile], operation: Operation) -> Picture:
    """The picture of one of the operations that `files` hold."""
    notes = [note for file in files for note in file.notes]
    return draw(operation, [file.path for file in files], notes)


def operation_of_process(files: Sequence[TraceFile], pid: int) -> Operation | None:
    """The last operation in which a process took part; None if there is none."""
    found = [one for one in find_operations(files) if one.has_pid(pid)]
    return found[-1] if found else None


def write_page(picture: Picture, path: Path) -> None:
    """Raises OSError."""
    path.write_text(page.page(picture), encoding="utf-8", errors="backslashreplace")


def write_trace_event(picture: Picture, path: Path) -> None:
    """Raises OSError."""
    path.write_text(trace_event.text(picture), encoding="ascii")
