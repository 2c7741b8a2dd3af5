"""What a campaign has found: figures by mode, and a table for people."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from xen_save_helper.ipc_schema.channel.messages import NO_ERRNO
from xen_save_helper.ipc_schema.faults.plan import Fault, parse
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import GuestKind, guest_for
from xen_save_helper.toolstack.campaign.run import Verdict

HOLDS: Final = "holds"
FAILS: Final = "fails"
IDLE: Final = "did not fire"

_SHOWN: Final = 40
"""How many of the verdicts that do not hold a table shows."""


@dataclass(frozen=True)
class Tally:
    """Numbers of verdicts. `whole` counts the runs in which every fault of the plan fired, however
    they ended; `seconds` is the sum over all runs."""

    holds: int = 0
    fails: int = 0
    idle: int = 0
    whole: int = 0
    seconds: float = 0.0

    @property
    def runs(self) -> int:
        return self.holds + self.fails + self.idle

    def plus(self, verdict: Verdict) -> Tally:
        kind = verdict.kind
        return Tally(
            self.holds + (kind == HOLDS),
            self.fails + (kind == FAILS),
            self.idle + (kind == IDLE),
            self.whole + (not not_fired(verdict)),
            self.seconds + verdict.seconds,
        )


def tally(verdicts: Iterable[Verdict]) -> Tally:
    found = Tally()
    for verdict in verdicts:
        found = found.plus(verdict)
    return found


def is_wrong(verdict: Verdict, *, must_fire: bool) -> bool:
    """Whether the verdict makes the campaign fail; `must_fire` as in `Report`."""
    return verdict.kind == FAILS or (must_fire and verdict.kind == IDLE)


def value_text(name: str, value: object) -> str:
    """A value from a trace or a verdict as people read it: a missing errno is -1, as in libxl, and
    a list has `;` between its items."""
    if name == "errnoval" and value == NO_ERRNO:
        return "-1"
    if isinstance(value, list | tuple):
        return "; ".join(map(str, value))
    return str(value)


def not_fired(verdict: Verdict) -> list[str]:
    """The faults of the plan that did not fire, as they are typed."""
    return [
        str(fault)
        for fault in parse(verdict.plan).faults
        if not set(verdict.fired) & {str(fault), *_at_each_side(fault)}
    ]


def _at_each_side(fault: Fault) -> Iterator[str]:
    """Yield the fault as it would be told at each side."""
    for side in Side:
        yield f"{side.value}{'/' if fault.point.who is Who.HELPER else '.'}{fault}"


@dataclass(frozen=True)
class Report:
    """What a campaign of `cells` cells found. `verdicts` are in the order of the cells and without
    their traces, which `trace` returns one by one, since all of them would be too much. `guest` is
    the usual one, `version` the program's. `must_fire`: each cell was chosen because a run passes
    its points (the matrix); some plans by chance never fire."""

    title: str
    version: str
    cells: int
    verdicts: tuple[Verdict, ...]
    must_fire: bool
    guest: GuestKind
    trace: Callable[[Verdict], Sequence[Mapping[str, Any]]]

    @property
    def missing(self) -> int:
        """The number of cells that were not run."""
        return self.cells - len(self.verdicts)

    @property
    def all_hold(self) -> bool:
        """Whether the campaign is complete and all its verdicts hold."""
        return not self.missing and not any(map(self.is_wrong, self.verdicts))

    def is_wrong(self, verdict: Verdict) -> bool:
        return is_wrong(verdict, must_fire=self.must_fire)

    @property
    def modes(self) -> list[str]:
        found = {verdict.mode for verdict in self.verdicts}
        return [mode.value for mode in Mode if mode.value in found]

    def of(self, mode: str) -> list[Verdict]:
        return [verdict for verdict in self.verdicts if verdict.mode == mode]

    def again(self, verdict: Verdict) -> str:
        """The command that repeats a run."""
        plan = parse(verdict.plan)
        guest = guest_for(plan, self.guest)
        memory = guest.memory >> 10
        size = f"{memory}K" if memory % 1024 else f"{memory >> 10}M"
        command = ("xen-toolstack", "faults", "run", "--mode", verdict.mode, "--memory", size)
        return shlex.join((*command, "--workload", guest.workload, verdict.plan))

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the figures, and what does not hold, without traces."""
        total = tally(self.verdicts)
        return {
            "version": self.version,
            "all_hold": self.all_hold,
            "cells": self.cells,
            "holds": total.holds,
            "fails": total.fails,
            "did_not_fire": total.idle,
            "all_fired": total.whole,
            "missing": self.missing,
            "seconds": round(total.seconds, 1),
            "wrong": [
                {
                    "mode": verdict.mode,
                    "plan": verdict.plan,
                    "kind": verdict.kind,
                    "problems": list(verdict.problems),
                    "again": self.again(verdict),
                }
                for verdict in self.verdicts
                if self.is_wrong(verdict)
            ],
        }


def rows(report: Report) -> list[tuple[str, ...]]:
    """A row for each mode, and one for all: mode, runs, holds, fails, did not fire, all of the
    plan's faults fired, seconds a run."""
    found = [(mode, tally(report.of(mode))) for mode in report.modes]
    if len(found) != 1:
        found.append(("all", tally(report.verdicts)))
    return [
        (
            name,
            *map(str, (of.runs, of.holds, of.fails, of.idle, of.whole)),
            f"{of.seconds / of.runs:.1f}" if of.runs else "-",
        )
        for name, of in found
    ]


def headline(report: Report) -> str:
    """Whether all verdicts hold, in one line."""
    wrong = sum(map(report.is_wrong, report.verdicts))
    parts = [f"{wrong} of {len(report.verdicts)} do not hold" if wrong else ""]
    if report.missing:
        parts.append(f"{report.missing} of {report.cells} have not been run")
    return "; ".join(filter(None, parts)) or f"all {report.cells} hold"


def why(verdict: Verdict) -> str:
    """What is wrong with the verdict, in one line."""
    return "; ".join(verdict.problems) or "the fault did not fire"


_COLUMNS: Final = ("Mode", "Runs", "Hold", "Fail", "Did not fire", "All fired", "s a run")


def show(report: Report) -> None:
    """Print the report on stdout: in columns and in colour on a terminal, else in plain lines."""
    wrong = [verdict for verdict in report.verdicts if report.is_wrong(verdict)]
    if sys.stdout.isatty():
        _show_in_colour(report, wrong)
        return
    for row in (_COLUMNS, *rows(report)):
        print("  ".join(f"{word:>12}" for word in row))
    for verdict in wrong[:_SHOWN]:
        print(f"{verdict.kind}: {verdict.mode}: {verdict.plan}: {why(verdict)}")
    if len(wrong) > _SHOWN:
        print(f"... and {len(wrong) - _SHOWN} more")
    print(headline(report))


def _show_in_colour(report: Report, wrong: Sequence[Verdict]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in _COLUMNS:
        table.add_column(column, justify="left" if column == "Mode" else "right")
    styles = ("", "", "green", "red", "yellow", "", "dim")
    for row in rows(report):
        cells = zip(row, styles, strict=True)
        table.add_row(*(Text(word, style=style if word != "0" else "dim") for word, style in cells))
    console.print(table)
    if wrong:
        console.print()
        found = Table(box=None, header_style="bold", pad_edge=False, show_lines=True)
        found.add_column("Mode")
        found.add_column("Plan", overflow="fold", ratio=2)
        found.add_column("What is wrong", overflow="fold", ratio=3)
        for verdict in wrong[:_SHOWN]:
            style = "red" if verdict.kind == FAILS else "yellow"
            words = (verdict.mode, verdict.plan, why(verdict))
            found.add_row(*(Text(word, style=style * (word is words[2])) for word in words))
        console.print(found)
        if len(wrong) > _SHOWN:
            console.print(Text(f"... and {len(wrong) - _SHOWN} more", style="dim"))
    console.print(Text(headline(report), style="bold green" if report.all_hold else "bold red"))
