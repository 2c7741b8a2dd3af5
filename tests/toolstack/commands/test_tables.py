"""What the tables of commands show on terminals of 80 and 120 columns, and on narrower ones, of
guests with long names and much memory."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from rich.console import Console

from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.ipc_schema.operation_status import MigrationStatus, OperationStatus
from xen_save_helper.toolstack.commands import display, evacuation_display
from xen_save_helper.toolstack.evacuation.outcome import EvacuationResult, Fate, GuestEnd
from xen_save_helper.toolstack.evacuation.plan import Guest, Place, make_plan
from xen_save_helper.toolstack.xl.outcome import (
    GuestResult,
    MigrationResult,
    Outcome,
    PostcopyResult,
)

GIB = 1 << 30
NAMES = ("database-of-the-accounts-department-0001", "database-of-the-accounts-department-0002",
         "web")  # fmt: skip
STRANGE = "[red]database[/red]"
FAR = "ssh host-17.rack-4.example.org xen-toolstack receive --host xen"
WIDTHS = [40, 80, 120]


def operation(name: str, **fields: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {
        "role": Role.HELPER_RESTORE, "domid": 32751, "domain": name, "pid": 4194303,
        "status": MigrationStatus.ACTIVE, "phase": "memory and state", "engine": "libxenguest",
        "total_time": 86_400_000, "transferred": 1234 * GIB + (5 << 27),
        "remaining": 768 * GIB + (1 << 29), "total": 1024 * GIB, "normal": 323_000_000,
        "page_size": 4096, "rounds": 29, "dirty_sync_count": 30, "round_pages": 100,
        "round_total": 1 << 28, "dirty_pages": 201_000_000, "dirty_pages_rate": 1_234_567.8,
        "memory_bps": 1.2e9, "time_remaining": 668_123, "expected_downtime": 412_345,
        "last_round_expected": 500_000, "last_round_time": 812_345, "postcopy_total": 0,
        "waits_for": "the other side: nothing has come for 123 s", "downtime_limit": 300,
        "max_bandwidth": 10 * GIB, "max_rounds": 30, "dirty_threshold": 50,
    }  # fmt: skip
    return dict.fromkeys(OperationStatus._fields) | usual | fields


def postcopy(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "role": Role.PAGE_SERVER, "domid": 32751, "domain": name, "pages": 1 << 28,
        "pages_left": 201_000_000, "faults": 12_345_678, "pages_per_second": 345_678.9,
        "longest_wait": 123.4, "lost": "", "trouble": "nothing has come from the page server for "
        "33 s: it connects again",
    } | fields  # fmt: skip


def shown(monkeypatch: pytest.MonkeyPatch, width: int, show: Callable[[], object]) -> list[str]:
    """The lines on a terminal of so many columns."""
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    for module in (display, evacuation_display):
        monkeypatch.setattr(module, "console_on_stdout", lambda: console)
    show()
    assert isinstance(console.file, io.StringIO)
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    return lines


def names_in(lines: Sequence[str]) -> set[str]:
    """The first words of lines: on the narrowest terminals a long name takes two of them whole."""
    return {line.partition(" ")[0] for line in lines} | {"".join(pair) for pair in pairwise(lines)}


def in_one_line(lines: Sequence[str], *figures: str) -> None:
    for figure in figures:
        assert any(figure in line for line in lines), figure


@pytest.mark.parametrize("width", WIDTHS)
def test_status(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    names = (*NAMES, STRANGE)
    rows = [*map(operation, names), postcopy("mail")]
    lines = shown(monkeypatch, width, lambda: display.operations(rows))
    assert {*names, "mail"} <= names_in(lines)
    in_one_line(lines, "32751", "helper-restore", "memory and state", "768.5 GiB", "1.1 GiB/s",
                "11 min 8 s", "page-server", "1.3 GiB/s")  # fmt: skip
    assert "nothing has come for 123 s" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_status_of_one(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lines = shown(monkeypatch, width, lambda: display.operation(operation(NAMES[0])))
    assert NAMES[0] in names_in(lines) | {lines[0].removeprefix("helper-restore of ")}
    in_one_line(lines, "24 h 0 min")


@pytest.mark.parametrize("width", WIDTHS)
def test_postcopy_list(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    lost = {"pages_left": None, "lost": "its process has died, without a word"}
    rows = [postcopy(NAMES[0]), postcopy(NAMES[1], role=Role.PAGER), postcopy("web", **lost)]
    lines = shown(monkeypatch, width, lambda: display.postcopies(rows))
    assert {*NAMES} <= names_in(lines)
    in_one_line(lines, "766.8 GiB", "12345678", "1.3 GiB/s", "2 min 3 s", "page-server")
    assert "lost: its process has died" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_list(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    row = {"domid": 32751, "memory": 1024 * GIB, "type": "hvm", "workload": None,
           "state": "suspended", "waits": "a person: see `recover`"}  # fmt: skip
    rows = [{**row, "name": name} for name in (*NAMES, STRANGE)]
    lines = shown(monkeypatch, width, lambda: display.guests(rows))
    if width >= 80:
        assert {*NAMES, STRANGE} <= names_in(lines)
    in_one_line(lines, "32751", "1.0 TiB", "suspended")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_plan_of_an_evacuation(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    guests = [Guest(name, 1, 1024 * GIB) for name in NAMES]
    guests.append(Guest("paused", 4, GIB, None, "the guest is paused, and cannot suspend: unpause"))
    plan = make_plan(guests, [Place(FAR, 2048 * GIB), Place("/srv/there")], bandwidth=10**9)
    lines = shown(monkeypatch, width, lambda: evacuation_display.show_plan(plan, limited=True))
    assert {*NAMES} <= names_in(lines)
    in_one_line(lines, "1.0 TiB", "18 min 20 s", "/srv/there", "paused cannot move")
    assert "receive --host xen" in " ".join(" ".join(lines).split())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_result_of_an_evacuation(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    ends = [GuestEnd(name, 1024 * GIB, FAR, Fate.UNDEFINED) for name in NAMES]
    result = EvacuationResult(ends, 4000.0)
    lines = shown(monkeypatch, width, lambda: evacuation_display.show_result(result))
    assert {*NAMES} <= names_in(lines)
    in_one_line(lines, "1.0 TiB", "undefined")
    assert "in 1 h 6 min" in " ".join(lines[:2])


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.0123, "12.3 ms"), (99.9, "99.90 s"), (100, "1 min 40 s"),
     (3599.4, "59 min 59 s"), (3600, "1 h 0 min"), (86_400, "24 h 0 min")],
)  # fmt: skip
def test_times(value: float | None, text: str) -> None:
    assert display.seconds(value) == text


@pytest.mark.parametrize(("faults", "text"), [(3, "9 pages, 3 faults"), (None, "9 pages")])
def test_what_is_not_known_of_a_postcopy_is_not_shown(
    capsys: pytest.CaptureFixture[str], faults: int | None, text: str
) -> None:
    display.migration(
        MigrationResult(
            outcome=Outcome.SUCCESS,
            rc=Error(0),
            mode="postcopy",
            postcopy_transitioned="never",
            rounds=1,
            pages_sent=9,
            bytes_sent=9 << 12,
            total_seconds=1.0,
            downtime_seconds=0.1,
            stopped_seconds=0.0,
            postcopy=PostcopyResult(9, faults, None, None),
            guest=GuestResult(None, None, None, None, None),
            reason="",
        )
    )
    (line,) = (one for one in capsys.readouterr().out.splitlines() if one.startswith("postcopy"))
    assert line.removeprefix("postcopy").strip() == text
