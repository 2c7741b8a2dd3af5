"""The command faults campaign."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.version import version
from xen_save_helper.toolstack.campaign.campaign import (
    USUAL_GUEST,
    Selection,
    State,
    StateError,
    run_cells,
    stopped_by_signals,
)
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.matrix import MODES, Cell, GuestKind
from xen_save_helper.toolstack.campaign.play import need_room
from xen_save_helper.toolstack.campaign.report import figures as report
from xen_save_helper.toolstack.campaign.report import html_page as html_report
from xen_save_helper.toolstack.campaign.report import junit
from xen_save_helper.toolstack.campaign.report.figures import Report
from xen_save_helper.toolstack.campaign.report.timelines import write_timelines
from xen_save_helper.toolstack.campaign.run import Verdict
from xen_save_helper.toolstack.campaign.scheduler import ClusterError, need_dask, run_cells_on
from xen_save_helper.toolstack.campaign.shards import Shard
from xen_save_helper.toolstack.campaign.worker import longest_directory
from xen_save_helper.toolstack.commands.common import CommandError, UsageError, show
from xen_save_helper.toolstack.commands.faults import fault_limits
from xen_save_helper.toolstack.xl.outcome import ExitCode

VERDICTS: Final = "verdicts.jsonl"
JUNIT: Final = "junit.xml"
PAGE: Final = "report.html"

_SELECTING: Final = (
    "modes", "points", "short", "random", "seed", "memory", "workload", "limit", "shard",
)  # fmt: skip
"""Options that a resumed campaign keeps."""


def campaign(arguments: argparse.Namespace) -> int:
    """Run what is selected, or what is still missing of it; then write the reports on all verdicts,
    even if it was interrupted."""
    directory = Path(arguments.out)
    state, selection, shard = _begin(arguments, directory)
    cells = _cells(selection, shard)
    try:
        if arguments.scheduler is not None:
            need_dask()
        else:
            need_room(longest_directory(len(cells)))
    except (ClusterError, ValueError) as error:
        raise CommandError(str(error)) from error
    if state.selection is None:
        directory.mkdir(parents=True, exist_ok=True)
        state.begin(selection, shard)
    again, must_fire = arguments.again, selection.must_fire
    missing = [
        cell
        for cell in cells
        if (verdict := state.verdicts.get(str(cell))) is None
        or (again and report.is_wrong(verdict, must_fire=must_fire))
    ]
    say(f"{title(state)}: {len(missing)} of {len(cells)} runs to do; into {directory}")
    trouble = ""
    try:
        interrupted = asyncio.run(_run(arguments, state, selection, missing))
    except asyncio.CancelledError:
        interrupted = True
    except ClusterError as error:
        if not state.verdicts:
            state.forget()
            raise CommandError(str(error)) from error
        interrupted, trouble = False, str(error)
    found = write_reports(arguments, state, cells, directory)
    if interrupted or trouble:
        why = trouble or "interrupted"
        say(f"{why}; `--resume --out {directory}` continues")
    elif not found.all_hold:
        say(f"`--resume --again --out {directory}` repeats the runs that do not hold")
    return ExitCode.SUCCESS if found.all_hold else ExitCode.FAILED


def title(state: State) -> str:
    """What the campaign runs, and which part of it."""
    assert state.selection is not None
    of = "" if state.shard is None else f", shard {state.shard}"
    return f"{state.selection.title}{of}"


def write_reports(
    arguments: argparse.Namespace, state: State, cells: Sequence[Cell], directory: Path
) -> Report:
    """Write the reports on all verdicts that there are into the directory, and print the figures.
    Raises OSError."""
    assert state.selection is not None
    found = Report(
        title=title(state),
        version=state.version,
        cells=len(cells),
        verdicts=tuple(state.verdicts[str(cell)] for cell in cells if str(cell) in state.verdicts),
        must_fire=state.selection.must_fire,
        guest=state.selection.guest,
        trace=state.trace,
    )
    junit.write(found, directory / JUNIT)
    timelines = write_timelines(found, directory, every=arguments.timelines == "all")
    html_report.write(found, directory / PAGE, timelines)

    def human() -> None:
        report.show(found)
        print(f"{directory / PAGE}, {directory / JUNIT}, {directory / VERDICTS}")

    show(arguments, {**found.as_json(), "directory": str(directory)}, human)
    return found


def _cells(selection: Selection, shard: Shard | None) -> list[Cell]:
    """Raises UsageError if nothing is selected."""
    try:
        cells = selection.cells()
    except ValueError as error:
        raise UsageError(str(error)) from error
    return cells if shard is None else shard.part(cells)


def _begin(arguments: argparse.Namespace, directory: Path) -> tuple[State, Selection, Shard | None]:
    """The state in the directory, what to run, and which part of it. Raises UsageError,
    CommandError, OSError."""
    try:
        state = State(directory / VERDICTS)
    except StateError as error:
        raise CommandError(str(error)) from error
    if not arguments.resume:
        if arguments.again:
            raise UsageError("--again needs --resume")
        if state.selection is not None:
            raise CommandError(
                f"{directory} has a campaign already: `--resume` continues it, `--out` names "
                "another directory"
            )
        return state, _selection(arguments), arguments.shard
    if state.selection is None:
        raise CommandError(f"{directory} has no campaign to resume")
    if state.version != version():
        raise CommandError(
            f"{directory} has a campaign of version {state.version}, and this is {version()}: the "
            "verdicts of both cannot be mixed; `--out` names another directory"
        )
    for name in _SELECTING:
        given = getattr(arguments, name)
        if given is not None and given is not False and given != []:
            raise UsageError(f"--{name}: a resumed campaign keeps what it was begun with")
    return state, state.selection, state.shard


def _selection(arguments: argparse.Namespace) -> Selection:
    """The selection of the command line. Raises UsageError."""
    if arguments.seed is not None and not arguments.random:
        raise UsageError("--seed needs --random N; the matrix is not random")
    if arguments.shard and arguments.random and arguments.seed is None:
        raise UsageError("--shard of --random needs --seed S: each shard would draw other plans")
    modes = tuple(mode.value for mode in MODES)
    if arguments.modes is not None:
        modes = tuple(arguments.modes.split(","))
    known = [mode.value for mode in Mode]
    for mode in modes:
        if mode not in known:
            raise UsageError(f"--modes: unknown mode {mode!r}; want {', '.join(known)}")
    return Selection(
        modes=tuple(dict.fromkeys(modes)),
        points="*" if arguments.points is None else arguments.points,
        random=arguments.random or 0,
        seed=_seed(arguments) if arguments.random else 0,
        short=arguments.short,
        guest=GuestKind(
            arguments.memory or USUAL_GUEST.memory, arguments.workload or USUAL_GUEST.workload
        ),
        limits=fault_limits(arguments),
    )


def _seed(arguments: argparse.Namespace) -> int:
    given: int | None = arguments.seed
    return secrets.randbelow(1 << 32) if given is None else given


async def _run(
    arguments: argparse.Namespace, state: State, selection: Selection, cells: Sequence[Cell]
) -> bool:
    """Run the cells. Returns whether it was interrupted. Raises ClusterError, OSError."""
    stop = asyncio.Event()
    at_once: int | None = arguments.jobs
    with stopped_by_signals(stop), _progress(arguments, len(cells)) as told:

        def heard(cell: Cell, verdict: Verdict) -> None:
            state.add(cell, verdict)
            told(cell, verdict)

        if arguments.scheduler is None:
            await run_cells(cells, selection, at_once or os.cpu_count() or 1, heard, stop)
        elif cells:
            address = arguments.scheduler
            await run_cells_on(address, cells, selection, at_once, heard, stop, say)
    return stop.is_set()


Told = Callable[[Cell, Verdict], None]


@contextlib.contextmanager
def _progress(arguments: argparse.Namespace, number: int) -> Iterator[Told]:
    """Progress on stderr: a bar on a terminal, else a line now and then; a verdict that does not
    hold is shown at once."""
    if not sys.stderr.isatty():
        done = 0

        def tell(cell: Cell, verdict: Verdict) -> None:
            nonlocal done
            done += 1
            if not verdict.holds or arguments.verbose:
                say(_line(cell, verdict))
            if done % max(1, number // 20) == 0:
                say(f"{done} of {number}")

        yield tell
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    columns: tuple[Any, ...] = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("all hold", total=number)
        wrong = 0

        def show(cell: Cell, verdict: Verdict) -> None:
            nonlocal wrong
            if not verdict.holds or arguments.verbose:
                wrong += not verdict.holds
                style = {report.FAILS: "red", report.IDLE: "yellow"}.get(verdict.kind, "green")
                bar.console.print(Text(_line(cell, verdict), style=style))
            description = f"[red]{wrong} do not hold" if wrong else "[green]all hold"
            bar.update(task, advance=1, description=description)

        yield show


def _line(cell: Cell, verdict: Verdict) -> str:
    return f"{verdict.kind}: {cell}" + ("" if verdict.holds else f": {report.why(verdict)}")


def say(text: str) -> None:
    """Tell how the campaign goes, in a line on stderr."""
    print(f"xen-toolstack: {' '.join(text.split())}", file=sys.stderr, flush=True)
