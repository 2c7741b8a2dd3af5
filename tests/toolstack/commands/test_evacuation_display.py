"""The live table of an evacuation, at the sizes of terminals."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from xen_save_helper.toolstack.commands.evacuation_display import LiveTable
from xen_save_helper.toolstack.evacuation.outcome import Fate, GuestEnd
from xen_save_helper.toolstack.evacuation.plan import Guest, Place, make_plan

MIB = 1 << 20
LONG = "cache-of-the-department-store-in-production-number-42"


def table_at(columns: int, lines: int = 24, guests: int = 6) -> tuple[LiveTable, Console]:
    """Of an evacuation in which the first guest has failed, the second has moved, and a third, with
    a long name, is on its way."""
    names = ["failed", "moved", LONG, *(f"waiting-{index}" for index in range(guests - 3))]
    plan = make_plan([Guest(name, 1, 256 * MIB) for name in names], [Place("/srv/there")])
    console = Console(
        file=io.StringIO(), width=columns, height=lines, force_terminal=True, color_system=None
    )
    table = LiveTable(console)
    table.begins(plan)
    table.ended(GuestEnd("failed", 256 * MIB, "/srv/there", Fate.STAYS, "the link is broken"))
    table.ended(GuestEnd("moved", 256 * MIB, "/srv/there", Fate.MOVED))
    (on_its_way,) = (move.guest for move in plan.moves if move.guest.name == LONG)
    table._under_way[LONG] = "ssh a.host.with.a.long.name xl migrate-receive", _progress(LONG)
    table.progress(on_its_way, "Frames iteration 1", 20 * 256, 80 * 256)
    return table, console


def _progress(name: str) -> object:
    from xen_save_helper.toolstack.commands.progress import Progress

    times = iter([0.0, 0.0, 2.0, 2.0, 2.0])
    progress = Progress(name, lambda: next(times))
    progress.update("Frames iteration 1", 0, 80 * 256)
    return progress


def shown(table: LiveTable, console: Console) -> list[str]:
    with console.capture() as capture:
        console.print(table.picture())
    return [line.rstrip() for line in capture.get().splitlines()]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_it_fits_the_terminal_and_shows_who_is_where(columns: int) -> None:
    table, console = table_at(columns)
    lines = shown(table, console)
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("1 of 6 moved, 1 on their way, 1 not moved")
    assert lines[1].split()[:3] == ["Guest", "To", "Now"]
    moving, failed, *waiting, moved = lines[2:]
    assert moving.startswith("cache")
    assert "…" in moving
    assert all(part in moving for part in ("round 2", "25 %", "10 MiB/s", "0:06"))
    assert failed.split() == ["failed", "/srv/there", "stays"]
    assert [line.split()[0] for line in waiting] == ["waiting-0", "waiting-1", "waiting-2"]
    assert moved.split() == ["moved", "/srv/there", "moved"]
    assert ("━" in moving) == (columns >= 100)


def test_names_have_the_room_that_destinations_leave() -> None:
    table, console = table_at(120)
    name = "a-guest-of-34-characters-number-42"
    table._under_way = {name: ("/srv/there", table._under_way[LONG][1])}
    assert shown(table, console)[2].startswith(f"{name} /srv/there ")


def test_a_low_terminal_shows_who_is_on_the_way_and_who_failed() -> None:
    table, console = table_at(80, lines=8, guests=64)
    lines = shown(table, console)
    assert len(lines) == 6
    assert lines[2].startswith("cache-")
    assert lines[3].startswith("failed")


def test_a_failure_is_told_above_the_table() -> None:
    _, console = table_at(80)
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue() == "xen-toolstack: failed: stays: the link is broken\n"


def test_a_refusal_is_told_with_what_follows() -> None:
    table, console = table_at(80)
    assert isinstance(console.file, io.StringIO)
    guest = replace(Guest("failed", 1, MIB), name="g")
    table.refused(guest, "false", "it ended", "/srv/there")
    assert console.file.getvalue().endswith("g: false: it ended; trying /srv/there\n")
