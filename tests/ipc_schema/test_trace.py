from __future__ import annotations

import errno
import json
import os
import time
from typing import Any

from tests import trace_lines
from xen_save_helper.ipc_schema.trace import Trace, clock


def written(lines: list[bytes]) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in lines]
    trace_lines.check(found)
    return found


def test_the_first_line_names_the_clock_and_the_time_of_day() -> None:
    lines: list[bytes] = []
    trace = Trace("helper", lines.append)
    trace.event("hello")
    trace.event("pager")
    first, *rest = written(lines)
    assert [line["event"] for line in rest] == ["hello", "pager"]
    assert first["event"] == "clock"
    assert first["boot"] == clock()["boot"]
    assert abs(first["realtime"] - time.time()) < 60


def test_a_forked_process_names_its_own() -> None:
    reads, writes = os.pipe()
    trace = Trace("helper", lambda line: os.write(writes, line))
    trace.event("hello")
    if not (child := os.fork()):
        trace.event("pager")
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writes)
    with os.fdopen(reads, "rb") as lines:
        found = written(lines.readlines())
    assert [(line["pid"] == child, line["event"]) for line in found] == [
        (False, "clock"),
        (False, "hello"),
        (True, "clock"),
        (True, "pager"),
    ]


def test_lines_about_a_guest_say_which() -> None:
    lines: list[bytes] = []
    trace = Trace("controller", lines.append)
    about = trace.about("web")
    about.event("suspend_request", domid=1)
    trace.event("suspend_request", domid=2)
    guests = [line.get("guest") for line in written(lines) if line["event"] != "clock"]
    assert guests == ["web", None]


def test_without_a_file_nothing_is_done() -> None:
    Trace("helper").about("web").event("hello", unserialisable=object())


def test_the_end_of_a_trace_about_several_guests_is_told_once() -> None:
    told: list[OSError] = []

    def full(_line: bytes) -> None:
        raise OSError(errno.ENOSPC, "no room")

    trace = Trace("controller", full, told.append)
    web, db = trace.about("web"), trace.about("db")
    for one in (web, db, trace, web):
        one.event("receiver_exited", status=0)
    assert len(told) == 1
