"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.xen import crossings, fault_table
from tests.xen.crossings import Crossing
from tests.xen.fault_table import FaultRow


@dataclass(frozen=True)
class Row:
    """A scenario on a suite. `outcome` is one of: passed, failed, timeout, lost (dom0 went down),
    emulator (which failed each time), no machine (other users have them all), not run (what comes
    before it did not pass)."""

    suite: str
    scenario: str
    outcome: str
    seconds: float
    figures: dict[str, Any]
    table: list[FaultRow] = field(default_factory=list)
    crossings: list[Crossing] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def print_table(rows: Sequence[Row], starts: int, spoiled: Sequence[str]) -> None:
    """For every scenario how it ended and its seconds; what was measured; how often the emulator
    failed."""
    table = Table()
    for heading in ("suite", "scenario", "outcome"):
        table.add_column(heading)
    table.add_column("seconds", justify="right")
    table.add_column("measured")
    for row in rows:
        measured = ", ".join(f"{name} {value}" for name, value in row.figures.items())
        table.add_row(row.suite, row.scenario, row.outcome, f"{row.seconds:.0f}", measured)
    Console(width=120).print(table)
    passed = sum(row.passed for row in rows)
    print(
        f"{passed} of {len(rows)} passed; {starts} machines; "
        f"the emulator failed {len(spoiled)} times"
    )
    for line in spoiled:
        print(f"  {line.partition(chr(10))[0]}")


def tell_faults(rows: Sequence[Row], directory: Path) -> None:
    """What `xl` made of each fault, if any were tried: printed, and as files in `directory`."""
    table = [fault for row in rows for fault in row.table]
    if table:
        print(fault_table.text(table), flush=True)
        fault_table.write(table, directory / fault_table.RESULTS_NAME)
        (directory / fault_table.PAGE_NAME).write_text(fault_table.markdown(table))


def tell_crossings(rows: Sequence[Row], directory: Path) -> None:
    """How guests got to another release of Xen, if any were sent: printed, and as files in
    `directory`."""
    table = [crossing for row in rows for crossing in row.crossings]
    if table:
        print(crossings.text(table), flush=True)
        crossings.write(table, directory / crossings.RESULTS_NAME)
        (directory / crossings.PAGE_NAME).write_text(crossings.markdown(table))
