"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """A scenario on a suite: `outcome` passed, failed, timeout, lost (dom0 went down) or emulator
    (which failed each time)."""

    suite: str
    scenario: str
    outcome: str
    seconds: float
    figures: dict[str, Any]

    @property
    def passed(self) -> bool:
        return self.outcome == "passed"


def print_table(rows: Sequence[Row], boots: int, spoiled: Sequence[str]) -> None:
    """Every scenario, how it ended, seconds; what was measured; how often the emulator failed."""
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
        f"{passed} of {len(rows)} passed; {boots} boots; the emulator failed {len(spoiled)} times"
    )
    for line in spoiled:
        print(f"  {line.partition(chr(10))[0]}")
