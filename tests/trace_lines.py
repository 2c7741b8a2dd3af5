"""Reads traces of runs, and checks them against the catalogue."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from xen_save_helper.ipc_schema.trace_events import why_not_catalogued


def check(lines: Iterable[Mapping[str, Any]]) -> None:
    """Raise AssertionError if the catalogue does not have a line."""
    problems = {problem for line in lines for problem in why_not_catalogued(line)}
    assert not problems, sorted(problems)


def length(file: Path) -> int:
    """How many whole lines a trace has so far. It is cheap to ask, again and again."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def read(file: Path) -> list[dict[str, Any]]:
    """Read and check the whole lines of a trace so far; none if there is no file yet."""
    text = file.read_text() if file.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    check(lines)
    return lines
