from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.toolstack.timeline.trace_lines import TraceError, parse_trace, read_trace

GOOD = {"t": 1.5, "pid": 7, "process": "helper", "event": "hello"}


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


def test_lines_are_sorted_by_time_and_keep_their_fields() -> None:
    file = parse_trace("t", [line(t=2, event="b", rc=3), line(t=1, event="a")])
    assert [one.event for one in file.lines] == ["a", "b"]
    assert file.lines[1].fields == {"rc": 3}
    assert not file.notes


def test_a_last_line_that_is_cut_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "events"
    path.write_bytes(line() + line(t=2)[:20])
    file = read_trace(path)
    assert len(file.lines) == 1
    assert file.notes == (f"{path}: line 2, the last one, is cut, and left out",)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"root:x:0:0\n", "not JSON"),
        (b"[1, 2]\n", "not an object"),
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b'{"t": 1}\n', "no 'pid'"),
        (line(t="soon"), "'t' is 'soon'"),
        (line(pid=True), "'pid' is True"),
        (b'{"t": NaN, "pid": 1, "process": "helper", "event": "x"}\n', "'t' is nan"),
        (line(t=10**400), "'t' is 1000"),
        (b"\xff\xfe\n", "not JSON"),
    ],
)
def test_a_bad_line_is_named(bad: bytes, why: str) -> None:
    with pytest.raises(TraceError, match=r"^name: line 2 is not a line of a trace") as caught:
        parse_trace("name", [line(), bad, line()])
    assert why in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_processes_of_one_boot_share_a_clock() -> None:
    def clock(pid: int, boot: str | None, namespace: int | None) -> bytes:
        return line(pid=pid, event="clock", boot=boot, time_namespace=namespace, realtime=5.0)

    file = parse_trace("t", [clock(1, "x", 4), clock(2, "x", 4), clock(3, "x", 5), line(pid=9)])
    clocks = {one.pid: one.clock for one in file.lines}
    assert clocks[1] == clocks[2] != clocks[3]
    assert clocks[9].path == "t", "which of the two it has is not known"
    old = parse_trace("t", [line(), line(pid=8)])
    assert len({one.clock for one in old.lines}) == 1
    assert old.lines[0].clock != parse_trace("u", [line()]).lines[0].clock


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_anything_is_read_or_refused(lines: list[bytes]) -> None:
    try:
        file = parse_trace("t", [line(), *lines])
    except TraceError:
        return
    assert file.lines


def test_nothing_is_noted() -> None:
    assert parse_trace("t", []).notes == ("t: there is no event in it",)
