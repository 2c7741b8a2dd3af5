"""The option --timeline, of commands that write a trace. Cheap to import."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from xen_save_helper.toolstack.aio.scratch import ScratchDirectory
from xen_save_helper.toolstack.commands.common import PROGRAM, UsageError
from xen_save_helper.toolstack.rules.cause import message_of


class OwnTimeline:
    """Draws what a command itself did, from its trace. Without --timeline it does nothing."""

    def __init__(self, target: str | None, events: str | None) -> None:
        self._target = target
        self._events = Path(events) if events is not None else None
        file = self._events
        # What is there already is another run's, or not a trace.
        self._before = file.stat().st_size if file is not None and file.is_file() else 0

    def draw(self) -> list[tuple[str, str]]:
        """Write the page; returns the row that tells where it is. A page that cannot be written
        does not change what the command has done: a line on stderr says so."""
        if self._target is None or self._events is None:
            return []
        from xen_save_helper.toolstack.timeline.files import (
            operation_of_process,
            picture_of,
            write_page,
        )
        from xen_save_helper.toolstack.timeline.trace_lines import TraceError, parse_trace

        try:
            with self._events.open("rb") as file:
                file.seek(self._before)
                trace = parse_trace(str(self._events), file)
            operation = operation_of_process([trace], os.getpid())
            if operation is None:
                return []
            write_page(picture_of([trace], operation), Path(self._target))
        except (OSError, TraceError) as error:
            text = f"{PROGRAM}: there is no timeline: {message_of(error)}"
            print(text, file=sys.stderr, flush=True)
            return []
        return [("timeline", self._target)]


@contextlib.contextmanager
def own_timeline(arguments: argparse.Namespace) -> Iterator[OwnTimeline]:
    """For a command with --timeline and --events; without --events the trace goes to a temporary
    file. Raises UsageError and OSError for a page that could not be written, before anything has
    begun."""
    target = arguments.timeline
    if target is None:
        yield OwnTimeline(None, None)
        return
    check_target(target)
    if arguments.events is not None:
        path = Path(arguments.events)
        if path.exists() and not path.is_file():
            raise UsageError(f"--timeline reads the trace: --events {path} is not a regular file")
        if path.exists() and os.path.exists(target) and os.path.samefile(path, target):
            raise UsageError("--timeline and --events: want two files")
        yield OwnTimeline(target, arguments.events)
        return
    with ScratchDirectory("xen-toolstack-timeline-") as scratch:
        arguments.events = str(scratch.path / "events")
        yield OwnTimeline(target, arguments.events)


def check_target(target: str) -> None:
    """Raise UsageError or OSError if no page can be written there."""
    if target == "-":
        raise UsageError("--timeline: want a file's name")
    with open(target, "ab"):
        pass
