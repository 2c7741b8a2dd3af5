"""The writer of the trace."""

from __future__ import annotations

import errno
import json

from xen_save_helper.ipc_schema.trace import Trace


def test_a_trace_about_a_guest_has_its_name_in_each_line() -> None:
    lines: list[bytes] = []
    trace = Trace("controller", lines.append)
    trace.about("web").event("receiver_exited", status=0)
    trace.event("receiver_exited", status=1)
    first, second = map(json.loads, lines)
    assert (first["guest_name"], first["process"], first["status"]) == ("web", "controller", 0)
    assert "guest_name" not in second


def test_the_end_of_a_trace_about_several_guests_is_told_once() -> None:
    told: list[OSError] = []

    def full(_line: bytes) -> None:
        raise OSError(errno.ENOSPC, "no room")

    trace = Trace("controller", full, told.append)
    web, db = trace.about("web"), trace.about("db")
    for one in (web, db, trace, web):
        one.event("receiver_exited", status=0)
    assert len(told) == 1


def test_a_trace_that_goes_nowhere_says_nothing_about_a_guest_either() -> None:
    Trace("controller").about("web").event("receiver_exited", status=0)
