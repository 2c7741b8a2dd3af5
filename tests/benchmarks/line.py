"""A row of the table: figures, each beside its limit, and what their ratio is to be."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

Pair = tuple[float, float]
"""A figure and its limit, measured one after the other, in the same unit."""


@dataclass(frozen=True)
class Line:
    """A row. `unit` is the unit of figures and limits; `reach` is the ratio to reach, None if the
    row is for information only."""

    what: str
    unit: str
    pairs: Sequence[Pair]
    limit_is: str
    reach: float | None
    at_least: bool = False
    others: float | None = None
    """How many processors were taken by processes that had no part in it."""

    @property
    def ratios(self) -> list[float]:
        return sorted(figure / limit for figure, limit in self.pairs)

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def figure(self) -> float:
        return statistics.median(figure for figure, _ in self.pairs)

    @property
    def limit(self) -> float:
        return statistics.median(limit for _, limit in self.pairs)

    @property
    def reached(self) -> bool:
        if self.reach is None:
            return True
        return self.ratio >= self.reach if self.at_least else self.ratio <= self.reach


def show(lines: list[Line]) -> None:
    table = Table(
        "what", "figure", "limit", "", "ratio", "least…greatest", "to reach", "", "others"
    )
    for line in lines:
        table.add_row(
            line.what,
            f"{line.figure:,.2f} {line.unit}",
            f"{line.limit:,.2f}",
            line.limit_is,
            f"{line.ratio:.2f}",
            f"{line.ratios[0]:.2f}…{line.ratios[-1]:.2f}" if len(line.pairs) > 1 else "",
            "" if line.reach is None else f"{'≥' if line.at_least else '≤'} {line.reach:g}",
            "" if line.reach is None else "yes" if line.reached else "NO",
            "" if line.others is None else f"{line.others:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 165).print(table)
