"""Tables for people. It loads rich, so it is imported only to show them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from json import dumps
from typing import Any, Final, Literal

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from xen_save_helper.ipc_schema.control import PARAMETERS
from xen_save_helper.toolstack.commands.tables import BETWEEN, Cell, fitted
from xen_save_helper.toolstack.xl.outcome import MigrationResult, Outcome

STATE_COLOURS: Final = {
    "running": "green",
    "paused": "yellow",
    "suspended": "magenta",
    "crashed": "red",
    "shut down": "red",
}
_PAGE_SIZE: Final = 4096
_UNFOLDED: Final = 10_000
"""More columns than any row takes."""
_WORDS: Final = frozenset({"What", "Phase"})
"""Columns of words, not of figures."""
_NARROWEST_NAME: Final = 12
_NARROWEST_WAIT: Final = 24
"""Columns in which a person can still read what a guest waits for."""

HEADLINES: Final = {
    Outcome.SUCCESS: ("green", "migrated: the guest runs at the destination"),
    Outcome.RUNNING_AT_SOURCE: ("yellow", "not migrated: the guest runs at the source"),
    Outcome.POSTCOPY_FAILED: (
        "red",
        "failed after the postcopy transition: the guest is left suspended at the source",
    ),
    Outcome.UNDEFINED: ("red", "undefined: the guest may run at the destination; look there"),
    Outcome.GUEST_DIED: ("red", "the guest itself died"),
}


def binary_size(number: float) -> str:
    """`1.5 GiB` for 1610612736."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if number == int(number) else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def seconds(value: float | None) -> str:
    """`12.3 ms`, `1.23 s`, `2 min 3 s` or `1 h 2 min`; `-` for None."""
    if value is None:
        return "-"
    if value < 100:
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def guests(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of `list`. Only names and what guests wait for are folded. On a terminal that
    is too narrow for both, the latter is below the table; on one that is too narrow for names, each
    guest has lines of its own."""
    console = console_on_stdout()
    simulated = any(row["workload"] for row in rows)
    titles = ("ID", "Memory", "Workload" if simulated else "Type", "State")
    cells = [_short_cells(row, simulated) for row in rows]
    widths = [max(map(len, column)) for column in zip(titles, *cells, strict=True)]
    room = console.width - sum(widths) - BETWEEN * len(widths)
    longest = max((len(row["name"]) for row in rows), default=0)
    waiting = [row for row in rows if row["waits"]]
    beside = room - min(longest, room // 2) - BETWEEN >= _NARROWEST_WAIT
    if room < min(longest, _NARROWEST_NAME):
        for row, others in zip(rows, cells, strict=True):
            console.print(Text(row["name"]), overflow="fold")
            console.print(Text("  ".join(["", *others])))
            if row["waits"]:
                console.print(Text(f"  waits for {row['waits']}"), overflow="fold")
        return

    table = Table(box=None, header_style="bold", pad_edge=False)
    narrowest = min(longest, room // 2 if waiting and beside else room)
    table.add_column("Name", overflow="fold", min_width=max(narrowest, 1))
    for title, width in zip(titles, widths, strict=True):
        side: Literal["left", "right"] = "right" if title in {"ID", "Memory"} else "left"
        table.add_column(title, justify=side, min_width=width, no_wrap=True)
    if waiting and beside:
        table.add_column("Waits for", overflow="fold")
    for row, (*others, state) in zip(rows, cells, strict=True):
        coloured = Text(state, style=STATE_COLOURS.get(state, ""))
        waits = [row["waits"] or ""] if waiting and beside else []
        table.add_row(Text(row["name"]), *others, coloured, *map(Text, waits))
    console.print(table)
    for row in waiting if not beside else ():
        console.print(Text(f"{row['name']} waits for {row['waits']}"), overflow="fold")


def _short_cells(row: dict[str, Any], simulated: bool) -> list[str]:
    """What a row has besides names."""
    kind = (row["workload"] or "-") if simulated else (row["type"] or "-").upper()
    domid = "-" if row["domid"] is None else str(row["domid"])
    memory = "-" if row["memory"] is None else binary_size(row["memory"])
    return [domid, memory, kind, row["state"]]


def postcopies(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of `postcopy list`, whose rows are a `PostcopyStatus` and `lost`."""
    titles = ("Name", "ID", "What", "Left", "Faults", "Rate", "Longest wait", "State")
    found: list[list[Cell]] = []
    for row in rows:
        cells = [row["domain"], str(row["domid"]), str(row["role"])]
        if row["pages_left"] is None:
            state = Text(f"lost: {row['lost']}" if row["lost"] else row["trouble"], style="red")
            found.append([*cells, *["-"] * 4, state])
            continue
        left = binary_size(row["pages_left"] * _PAGE_SIZE)
        rate = f"{binary_size(int(row['pages_per_second'] * _PAGE_SIZE))}/s"
        state = Text(row["trouble"] or "working", style="yellow" if row["trouble"] else "green")
        wait = seconds(row["longest_wait"])
        found.append([*cells, left, str(row["faults"]), rate, wait, state])
    console = console_on_stdout()
    console.print(fitted(console.width, titles, found, free="State", left=_WORDS))


def operations(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of `status`, whose rows are an `OperationStatus` or a `PostcopyStatus`."""
    console = console_on_stdout()
    console.print(_table_of(rows, console.width))


def _table_of(rows: Sequence[dict[str, Any]], width: int) -> RenderableType:
    titles = ("Name", "ID", "What", "Phase", "Sent", "Left", "Rate", "Time left", "State")
    cells = [[*_operation_cells(row)] for row in rows]
    return fitted(width, titles, cells, free="State", left=_WORDS)


def _operation_cells(row: dict[str, Any]) -> Iterator[Cell]:
    yield row["domain"]
    yield "-" if row["domid"] < 0 else str(row["domid"])
    yield str(row["role"])
    if "pages_left" in row:
        yield "postcopy"
        yield _size((row["pages"] - row["pages_left"]) * _PAGE_SIZE)
        yield _size(row["pages_left"] * _PAGE_SIZE)
        yield f"{binary_size(int(row['pages_per_second'] * _PAGE_SIZE))}/s"
        yield "-"
        yield Text(row["trouble"] or "working", style="yellow" if row["trouble"] else "green")
        return
    phase = row["phase"] or "-"
    yield f"{phase} {row['dirty_sync_count']}" if phase == "precopy" else phase
    yield _size(row["transferred"])
    yield _size(row["remaining"])
    yield "-" if row["memory_bps"] is None else f"{binary_size(int(row['memory_bps']))}/s"
    yield _milliseconds(row["time_remaining"])
    waits = row["waits_for"]
    yield Text(f"waits for {waits}" if waits else "working", style="yellow" if waits else "green")


def operation(row: dict[str, Any]) -> None:
    """Print all that is known of one operation."""
    if "pages_left" in row:
        operations([row])
        return
    console = console_on_stdout()
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in _operation_figures(row):
        table.add_row(name, value)
    console.print(Text(f"{row['role']} of {row['domain']}", style="bold"), overflow="fold")
    console.print(table)


def _operation_figures(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "phase", f"{row['phase'] or '-'} ({row['status'] or '-'})"
    if row["status"] is None:
        yield "waits for", row["waits_for"]
        return
    yield "so far", _milliseconds(row["total_time"])
    moved = f"{_size(row['transferred'])}, {row['normal']} pages"
    yield "moved", moved if row["total"] is None else f"{moved}, of {_size(row['total'])}"
    yield "left", f"{_size(row['remaining'])}, {_milliseconds(row['time_remaining'])}"
    if row["memory_bps"] is not None:
        yield "rate", f"{binary_size(int(row['memory_bps']))}/s"
    if row["dirty_pages"] >= 0:
        rate = row["dirty_pages_rate"]
        per_second = "" if rate is None else f", {binary_size(int(rate * _PAGE_SIZE))}/s"
        yield "dirty", f"{row['dirty_pages']} pages in round {row['rounds']}{per_second}"
    if row["last_round_expected"] is not None:
        expected, took = row["last_round_expected"], row["last_round_time"]
        yield "last round", f"took {_milliseconds(took)}, expected {_milliseconds(expected)}"
    if row["expected_downtime"] is not None:
        yield "downtime", f"{_milliseconds(row['expected_downtime'])} if precopy ended now"
    if row["downtime"] is not None:
        yield "downtime", f"{_milliseconds(row['downtime'])} so far"
    if row["postcopy_total"]:
        of = f"{row['postcopy_remaining']} of {row['postcopy_total']} pages to come"
        yield "postcopy", f"{of}, {row['postcopy_requests']} faults"
    if row["postcopy_blocktime"] is not None:
        waits = f", one for {_milliseconds(row['longest_wait'])} now" if row["longest_wait"] else ""
        yield "vCPUs waited", f"{_milliseconds(row['postcopy_blocktime'])}{waits}"
    names = {"bandwidth": "max_bandwidth", "max_downtime": "downtime_limit"}
    if told := limits({name: row[names.get(name, name)] for name in PARAMETERS}):
        yield "limits", told
    if row["waits_for"]:
        yield "waits for", row["waits_for"]


def limits(parameters: Mapping[str, int | None]) -> str:
    """What `set` can change, with the units that its options have."""
    told = []
    for name, value in parameters.items():
        if value is None or (name, value) == ("bandwidth", 0):
            continue
        text = f"{binary_size(value)}/s" if name == "bandwidth" else str(value)
        unit = " ms" if name == "max_downtime" else ""
        told.append(f"{name.replace('_', '-')} {text}{unit}")
    return ", ".join(told)


def _size(number: int | None) -> str:
    return "-" if number is None else binary_size(number)


def _milliseconds(value: int | None) -> str:
    return seconds(None if value is None else value / 1000)


@contextmanager
def watching(*, json: bool) -> Iterator[Callable[[Sequence[dict[str, Any]]], None]]:
    """Show the rows of `status` again and again: a terminal shows the last, anything else gets each
    one; as JSON, one line each."""
    console = console_on_stdout()
    if json or not console.is_terminal:
        yield partial(_print_again, json=json)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield lambda rows: live.update(_table_of(rows, console.width), refresh=True)


def _print_again(rows: Sequence[dict[str, Any]], *, json: bool) -> None:
    if json:
        print(dumps(rows), flush=True)
    elif rows:
        operations(rows)
        sys.stdout.flush()


def migration(result: MigrationResult, extra: Sequence[tuple[str, str]] = ()) -> None:
    """Print the summary of a migration; `extra` rows come last."""
    colour, headline = HEADLINES[result.outcome]
    if result.outcome is Outcome.SUCCESS and result.guest.state == "paused":
        headline = "migrated: the guest is paused at the destination"
    if result.outcome is Outcome.RUNNING_AT_SOURCE and result.guest.state not in {None, "running"}:
        headline = f"not migrated: the guest is {result.guest.state} at the source"
    console = console_on_stdout()
    console.print(Text(headline, style=f"bold {colour}"), soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim")
    table.add_column()
    for name, value in (*_figures(result), *extra):
        table.add_row(name, value)
    console.print(table)
    if result.reason and result.outcome is Outcome.SUCCESS:
        console.print(Text(result.reason, style="dim"), soft_wrap=True)
    for warning in result.warnings:
        console.print(Text(f"warning: {warning}", style="yellow"), soft_wrap=True)


def console_on_stdout() -> Console:
    """A console on stdout: a terminal has a width; in a file or pipe, which other programs read,
    each row is one line."""
    console = Console()
    return console if console.is_terminal else Console(width=_UNFOLDED)


def _figures(result: MigrationResult) -> Iterator[tuple[str, str]]:
    yield "mode", result.mode
    took = seconds(result.total_seconds)
    if result.bytes_sent is None:
        yield "sent", "unknown: the helper did not report it"
        yield "took", took
    else:
        rounds = "1 round" if result.rounds == 1 else f"{result.rounds} rounds"
        yield "sent", f"{result.pages_sent} pages, {binary_size(result.bytes_sent)}, {rounds}"
        rate = result.bytes_sent / result.total_seconds if result.total_seconds else 0.0
        yield "took", f"{took} ({binary_size(int(rate))}/s)"
    if result.downtime_seconds is not None:
        yield "stood still", seconds(result.downtime_seconds)
    if result.stopped_seconds:
        yield "stopped", f"our own processes stood still for {seconds(result.stopped_seconds)}"
    if result.postcopy is not None:
        waits = ""
        if result.postcopy.fault_p50_us is not None and result.postcopy.fault_p99_us is not None:
            waits = (
                f", each waited {result.postcopy.fault_p50_us:.0f} us (p50), "
                f"{result.postcopy.fault_p99_us:.0f} us (p99)"
            )
        if result.postcopy.pages is not None:
            faults = result.postcopy.faults
            # A page server may have ended before it could be asked.
            counted = "" if faults is None else f", {faults} faults"
            yield "postcopy", f"{result.postcopy.pages} pages{counted}{waits}"
    guest = result.guest
    if guest.state is not None:
        yield "guest", f"{guest.state} at {guest.host}"
    if guest.steps:
        memory = "every one right" if guest.memory_ok else "ONE WAS WRONG"
        yield "checked", f"{guest.pages_checked} pages in {guest.steps} steps, {memory}"
