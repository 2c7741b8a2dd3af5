from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.timeline.traces import BOOTS, TwoMachines, precopy, trace_of
from xen_save_helper.toolstack.timeline.operations import find_operations
from xen_save_helper.toolstack.timeline.trace_lines import TraceFile, parse_trace, read_trace


def shifted(traces: TwoMachines, seconds: float, pids: int) -> TwoMachines:
    """The same some time later, by other processes."""
    for lines in traces.lines:
        for line in lines:
            line["t"] += seconds
            line["pid"] += pids
            if "helper" in line:
                line["helper"] += pids
            if "realtime" in line:
                line["realtime"] += seconds
    return traces


def joined(*several: TwoMachines) -> list[TraceFile]:
    """One file for each machine."""
    return [
        trace_of([line for one in several for line in one.lines[machine]], f"{machine}")
        for machine in (0, 1)
    ]


def test_a_real_migration_is_one_operation(real_trace: Path) -> None:
    file = read_trace(real_trace)
    (operation,) = find_operations([file])
    assert operation.kind == "migration"
    assert operation.name == "demo"
    assert operation.source is not None
    assert operation.destination is not None
    assert {line.process for line in operation.source.lines} == {"controller", "helper"}
    assert {line.process for line in operation.destination.lines} == {"receiver", "helper"}
    assert sum(len(side.lines) for side in operation.sides) == len(file.lines)


@pytest.mark.parametrize("offset", [0.0, -500.0, 86_400.0])
def test_both_sides_find_each_other_across_clocks(offset: float) -> None:
    operation = precopy(offset).operation()
    assert operation.guest == "web"
    assert [side.domid for side in operation.sides] == [1, 7]


def test_many_operations_in_one_file_are_told_apart() -> None:
    again = shifted(precopy(3.0, guest="db"), 10.0, 100)
    twice = shifted(precopy(3.0), 20.0, 200)
    found = find_operations(joined(precopy(3.0), again, twice))
    assert [one.name for one in found] == ["web", "db", "web"]
    assert all(len(one.sides) == 2 for one in found)


def test_migrations_that_go_on_at_once_find_their_own_other_side() -> None:
    pairs = [shifted(precopy(3.0, guest=f"g{n}"), n * 0.01, n * 100) for n in range(8)]
    for one in pairs:
        # One process migrates them all.
        for line in list(one.lines[0]):
            if line["process"] == "controller":
                line["pid"] = 10
                if line["event"] == "clock" and one is not pairs[0]:
                    one.lines[0].remove(line)
    found = find_operations(joined(*pairs))
    assert [one.name for one in found] == [f"g{n}" for n in range(8)]
    for operation in found:
        assert operation.source is not None
        assert operation.destination is not None
        assert operation.source.guest == operation.destination.guest


def helper_line(t: float, pid: int, event: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "pid": pid, "process": "helper", "event": event, **fields}


def drop_in(t: float, pid: int, *arguments: str) -> list[dict[str, Any]]:
    clock = {"boot": BOOTS[0], "time_namespace": 1, "realtime": 1e9 + t}
    return [
        helper_line(t, pid, "clock", **clock),
        helper_line(t, pid, "start", arguments=list(arguments), dialect="mainline"),
        helper_line(t + 2, pid, "complete", retval=0, errnoval=0),
    ]


SAVE = ("--save-domain", "8", "12", "5", "0", "136", "0")
LIVE = ("--save-domain", "8", "12", "5", "1", "136", "0")
RESTORE = ("--restore-domain", "8", "12", "6", "1", "0", "2", "0", "136", "0")


def test_helpers_alone_are_told_apart_by_what_libxl_asks() -> None:
    (saved, restored) = find_operations(
        [trace_of([*drop_in(0, 1, *SAVE), *drop_in(1, 2, *RESTORE)])]
    )
    assert [saved.kind, restored.kind] == ["save", "restore"]
    assert [saved.domid, restored.domid] == [5, 6]
    (both,) = find_operations([trace_of([*drop_in(0, 1, *LIVE), *drop_in(1, 2, *RESTORE)])])
    assert both.kind == "migration"
    assert both.name == "domain 5"
    apart = find_operations([trace_of([*drop_in(0, 1, *LIVE), *drop_in(9, 2, *RESTORE)])])
    assert len(apart) == 2, "the restore began when the save was over"


def test_a_pid_that_comes_again_is_another_process() -> None:
    found = find_operations([trace_of([*drop_in(0, 1, *SAVE), *drop_in(50, 1, *SAVE)])])
    assert len(found) == 2


def test_what_comes_before_a_hello_is_of_the_same_process() -> None:
    both = precopy()
    place = next(n for n, line in enumerate(both.lines[0]) if line["event"] == "start")
    start = both.lines[0][place]
    for event in ("hello", "faults"):
        both.lines[0].insert(place, {**start, "event": event, "plan": "start=stop"})
    assert [line.event for line in both.operation().sides[0].lines].count("faults") == 1


def test_a_page_server_belongs_to_its_save() -> None:
    server = {"t": 3.0, "pid": 9, "process": "page server", "event": "pages_kept", "domid": 5}
    (one,) = find_operations([trace_of([*drop_in(0, 1, *LIVE), {**server, "pages": 4}])])
    assert one.source is not None
    assert [line.process for line in one.source.lines][-1] == "page server"


def test_nothing_is_in_a_trace_without_operations() -> None:
    assert find_operations([parse_trace("t", [])]) == []
