"""Tables for people. It loads rich, so it is imported only to show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    """`12.3 ms` or `1.23 s`; `-` for None."""
    if value is None:
        return "-"
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def guests(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of `list`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    simulated = any(row["workload"] for row in rows)
    what = "Workload" if simulated else "Type"
    table.add_column("Name", overflow="fold")
    for title in ("ID", "Memory", what, "State"):
        table.add_column(title, justify="right" if title in {"ID", "Memory"} else "left")
    waiting = any(row["waits"] for row in rows)
    if waiting:
        table.add_column("Waits for", overflow="fold")
    for row in rows:
        state = Text(row["state"], style=STATE_COLOURS.get(row["state"], ""))
        kind = (row["workload"] or "-") if simulated else (row["type"] or "-").upper()
        domid = "-" if row["domid"] is None else str(row["domid"])
        memory = "-" if row["memory"] is None else binary_size(row["memory"])
        cells = [row["name"], domid, memory, kind, state]
        table.add_row(*cells, *([row["waits"] or ""] if waiting else []))
    console_on_stdout().print(table)


def postcopies(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table of `postcopy list`, whose rows are a `PostcopyStatus` and `lost`."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("Name", overflow="fold")
    for title in ("ID", "What", "Left", "Faults", "Rate", "Longest wait"):
        table.add_column(title, justify="left" if title == "What" else "right")
    table.add_column("State", overflow="fold")
    for row in rows:
        cells = [row["domain"], str(row["domid"]), str(row["role"])]
        if row["pages_left"] is None:
            state = Text(f"lost: {row['lost']}" if row["lost"] else row["trouble"], style="red")
            table.add_row(*cells, *["-"] * 4, state)
            continue
        left = binary_size(row["pages_left"] * _PAGE_SIZE)
        rate = f"{binary_size(int(row['pages_per_second'] * _PAGE_SIZE))}/s"
        state = Text(row["trouble"] or "working", style="yellow" if row["trouble"] else "green")
        wait = seconds(row["longest_wait"])
        table.add_row(*cells, left, str(row["faults"]), rate, wait, state)
    console_on_stdout().print(table)


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
            counts = f"{result.postcopy.pages} pages, {result.postcopy.faults} faults"
            yield "postcopy", f"{counts}{waits}"
    guest = result.guest
    if guest.state is not None:
        yield "guest", f"{guest.state} at {guest.host}"
    if guest.steps:
        memory = "every one right" if guest.memory_ok else "ONE WAS WRONG"
        yield "checked", f"{guest.pages_checked} pages in {guest.steps} steps, {memory}"
