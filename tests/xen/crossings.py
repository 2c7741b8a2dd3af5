"""The table of guests that were saved on one release of Xen and restored on another: its rows, and
their formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Final

RESULTS_NAME: Final = "cross-release.json"
"""The file among the results of a scenario or a whole run: a list of rows."""
PAGE_NAME: Final = "cross-release.md"


@dataclass(frozen=True)
class Crossing:
    """A guest of `kind` (pv, pvh, hvm), saved on `source` and restored on `destination` (releases
    of Xen and QEMU) by `command` with `helper`. `ended`: what it does there, or why it was
    refused."""

    kind: str
    source: str
    destination: str
    command: str
    helper: str
    ended: str
    seconds: float


HEADINGS: Final = ("guest", "saved on", "restored on", "by", "save helper", "then", "s")


def write(rows: Iterable[Crossing], path: Path) -> None:
    """Write the rows as JSON."""
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1))


def read(path: Path) -> list[Crossing]:
    """Read what `write` wrote; no rows if the file does not exist."""
    return [Crossing(**row) for row in json.loads(path.read_text())] if path.exists() else []


def markdown(rows: Sequence[Crossing]) -> str:
    """A page with the table."""
    lines = [
        "# Guests that go to another release of Xen",
        "",
        "Each guest counts on, with its memory checked, or Xen's own toolstack refuses it as ours "
        "does. Made by `python -m tests.xen cross-release-back --keep DIR`.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def text(rows: Sequence[Crossing]) -> str:
    """The table for a terminal."""
    table = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    padded = (zip(row, widths, strict=True) for row in table)
    return "\n".join("  ".join(cell.ljust(width) for cell, width in row).rstrip() for row in padded)


def _cells(row: Crossing) -> tuple[str, ...]:
    *cells, seconds = astuple(row)
    return (*(cell.replace("|", "\\|").replace("\n", " ") for cell in cells), f"{seconds:.0f}")
