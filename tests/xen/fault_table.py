"""The table of how `xl` dealt with each fault: its rows, and their formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

RESULTS_NAME: Final = "xl-faults.json"
"""The file among the results of a scenario or a whole run: a list of rows."""
PAGE_NAME: Final = "xl-faults.md"


@dataclass(frozen=True)
class FaultRow:
    """One fault under one command, on Xen `xen`. `plan` is what XEN_SAVE_HELPER_FAULTS held; `rule`
    what has to happen; `status` xl's exit status (negative: the signal that killed it, None: it did
    not end); `message` the most telling line of its `output`; `ended` what ended xl; `guest` where
    the guest was afterwards; `left` what had to be cleared away; `wrongs` what libxl did wrong;
    `broken` the promises that we broke."""

    xen: str
    operation: str
    plan: str
    rule: str
    status: int | None
    message: str
    ended: str
    guest: str
    left: list[str]
    seconds: float
    wrongs: list[str]
    broken: list[str]
    output: str

    @property
    def verdict(self) -> str:
        judged = f"libxl wrong: {'; '.join(self.wrongs)}" if self.wrongs else "libxl right"
        return f"{judged}; OURS BROKEN: {'; '.join(self.broken)}" if self.broken else judged

    def cells(self) -> tuple[str, ...]:
        """The cells in the order of HEADINGS."""
        return (
            self.operation,
            self.plan,
            self.rule,
            "none" if self.status is None else str(self.status),
            self.message,
            self.guest,
            ", ".join(self.left) or "nothing",
            f"{self.seconds:.0f}",
            self.verdict,
        )


HEADINGS: Final = (
    "command",
    "fault",
    "what is right",
    "exit",
    "what xl says",
    "the guest then",
    "left behind",
    "s",
    "verdict",
)


def write(rows: Iterable[FaultRow], path: Path) -> None:
    """Write the rows as JSON, with everything in them."""
    path.write_text(json.dumps([asdict(row) | {"verdict": row.verdict} for row in rows], indent=1))


def read(path: Path) -> list[FaultRow]:
    """Read what `write` wrote; no rows if there is no file."""
    if not path.exists():
        return []
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    for row in rows:
        del row["verdict"]
    return [FaultRow(**row) for row in rows]


def summary(rows: Sequence[FaultRow]) -> str:
    """How many rows were right, and how many wrong."""
    wrong = sum(bool(row.wrongs) for row in rows)
    broken = sum(bool(row.broken) for row in rows)
    return (
        f"{len(rows)} faults: libxl right in {len(rows) - wrong}, wrong in {wrong}; "
        f"promises of this project broken in {broken}"
    )


def markdown(rows: Sequence[FaultRow]) -> str:
    """A page with the table."""
    versions = " and ".join(sorted({row.xen for row in rows}))
    lines = [
        "# What `xl` does when its save helper fails",
        "",
        f"Xen {versions}, unmodified `xl`, a PVH guest that counts; `xen-save-helper` in the place "
        "of libxl's helper, with the fault in `XEN_SAVE_HELPER_FAULTS`. Made by "
        "`python -m tests.xen xl-faults-save xl-faults-restore xl-faults-migrate --keep DIR`.",
        "",
        f"{summary(rows)}.",
        "",
        "| " + " | ".join(HEADINGS) + " |",
        "|" + "---|" * len(HEADINGS),
    ]
    for row in rows:
        operation, plan, *others = (_cell(cell) for cell in row.cells())
        lines.append("| " + " | ".join((f"`{operation}`", f"`{plan}`", *others)) + " |")
    return "\n".join(lines) + "\n"


def text(rows: Sequence[FaultRow]) -> str:
    """The table for a terminal: some lines for each row, because the cells are long."""
    lines = []
    for number, row in enumerate(rows, 1):
        status = "did not end" if row.status is None else f"exit {row.status}"
        lines += [
            f"{number:3} {row.operation}  {row.plan}",
            f"      right:   {row.rule}",
            f"      xl:      {status} after {row.seconds:.1f} s, {row.ended}: {row.message}",
            f"      guest:   {row.guest}; left behind: {', '.join(row.left) or 'nothing'}",
            f"      verdict: {row.verdict}",
        ]
    return "\n".join([*lines, summary(rows)])


def _cell(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
