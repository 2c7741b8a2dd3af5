"""Traces of a migration between two machines whose clocks, and whose delays, are known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from xen_save_helper.toolstack.timeline.operations import Operation, find_operations
from xen_save_helper.toolstack.timeline.trace_lines import TraceFile, parse_trace

BOOTS: Final = ("aaaa", "bbbb")
REALTIME: Final = 1_700_000_000.0


class TwoMachines:
    """Writes a trace for each of two machines. `offset` is how far the second one's clock is ahead
    of the first one's; `wall_error` how far its time of day is."""

    def __init__(self, offset: float = 0.0, wall_error: float = 0.0) -> None:
        self.offset = offset
        self.wall_error = wall_error
        self.lines: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])

    def add(self, at: float, machine: int, pid: int, process: str, event: str, **more: Any) -> None:
        """`at` is the true time: seconds of the first machine's clock."""
        t = at + (self.offset if machine else 0.0)
        own = self.lines[machine]
        if not any(line["pid"] == pid for line in own):
            own.append(
                {
                    "t": t,
                    "pid": pid,
                    "process": process,
                    "event": "clock",
                    "boot": BOOTS[machine],
                    "time_namespace": 1,
                    "realtime": REALTIME + at + (self.wall_error if machine else 0.0),
                }
            )
        own.append({"t": t, "pid": pid, "process": process, "event": event, **more})

    def said(
        self, at: float, delay: float, message: str, outward: bool, guest: str = "web"
    ) -> None:
        """A message of the handshake."""
        way, times = ("said", "heard"), (at, at + delay)
        for machine, pid, process in ((0, 10, "controller"), (1, 20, "receiver")):
            turn = int(outward == bool(machine))
            event = f"handshake_{way[turn]}"
            self.add(times[turn], machine, pid, process, event, message=message, guest=guest)

    def files(self) -> list[TraceFile]:
        return [
            trace_of(sorted(lines, key=lambda line: line["t"]), f"{name}.jsonl")
            for name, lines in zip(("here", "there"), self.lines, strict=True)
        ]

    def operation(self) -> Operation:
        (one,) = find_operations(self.files())
        return one

    def write(self, directory: Path) -> list[Path]:
        paths = [directory / "here.jsonl", directory / "there.jsonl"]
        for path, lines in zip(paths, self.lines, strict=True):
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return paths


def trace_of(lines: Iterable[dict[str, Any]], path: str = "trace") -> TraceFile:
    return parse_trace(path, [json.dumps(line).encode() + b"\n" for line in lines])


def precopy(
    offset: float = 0.0, delay: float = 0.001, wall_error: float = 0.0, guest: str = "web"
) -> TwoMachines:
    """A migration with one round of precopy, of which all times are known."""
    both = TwoMachines(offset, wall_error)
    here, helper = (0, 10, "controller"), (0, 11, "helper")
    there, other = (1, 20, "receiver"), (1, 21, "helper")
    add = both.add
    add(0.0, *here, "migrate", domid=1, to="there", guest=guest)
    add(0.0, *here, "handshake", action="wait for the receiver", guest=guest)
    both.said(0.1, delay, "banner", outward=False, guest=guest)
    both.said(0.2, delay, "config", outward=True, guest=guest)
    both.said(0.3, delay, "verdict", outward=False, guest=guest)
    add(0.31, *here, "handshake", action="send the guest", guest=guest)
    add(0.32, *here, "save", domid=1, live=True, strategy="default", guest=guest)
    add(0.33, *here, "helper_started", helper=11, guest=guest)
    add(0.33, *there, "domain_created", domid=7, name=f"{guest}--incoming", guest=guest)
    add(0.34, *there, "helper_started", helper=21, guest=guest)
    add(0.35, *helper, "start", operation="save", domid=1)
    add(0.35, *other, "start", operation="restore", domid=7)
    add(0.4, *helper, "phase", name="headers", state="begin")
    add(0.4 + delay, *other, "phase", name="headers", state="begin")
    add(0.4 + delay, *other, "phase", name="headers", state="end", seconds=0.0)
    add(0.4, *helper, "phase", name="headers", state="end", seconds=0.0)
    add(0.5, *helper, "phase", name="precopy", state="begin")
    round_ = {"doing_what": "Frames iteration 0", "iteration": 0, "dirty_count": 1000}
    add(1.5, *helper, "round", **round_, pfns=1000, pages=1000, seconds=1.0, decision="CONTINUE")
    policy = {"iteration": 1, "total_written": 1000, "dirty_count": 10, "why": "10 pages are few"}
    add(1.5, *here, "precopy_policy", **policy, answer="STOP_AND_COPY", guest=guest)
    add(1.6, *helper, "phase", name="precopy", state="end", seconds=1.1)
    add(1.6, *here, "suspend_request", domid=1, guest=guest)
    add(1.63, *here, "suspend_done", domid=1, rc=0, guest=guest)
    add(1.63, *helper, "phase", name="stop and copy", state="begin")
    add(1.65, *helper, "phase", name="stop and copy", state="end", seconds=0.02)
    add(1.65, *helper, "phase", name="state", state="begin")
    add(1.66, *helper, "complete", retval=0, errnoval=0)
    add(1.7, *other, "complete", retval=0, errnoval=0)
    add(1.7, *here, "save_ended", domid=1, rc=0, transitioned="never", suspended=True, guest=guest)
    add(1.75, *there, "restore_ended", domid=7, rc=0, postcopy_resumed=False, guest=guest)
    both.said(1.76, delay, "ready", outward=False, guest=guest)
    both.said(1.78, delay, "go", outward=True, guest=guest)
    add(1.8, *there, "handshake", action="start the guest")
    add(1.81, *there, "handshake", action="report the start")
    both.said(1.81, delay, "report", outward=False, guest=guest)
    add(1.9, *there, "received", started=True, rc=0, reason="", guest=guest)
    migrated = {"outcome": "success", "rc": 0, "mode": "precopy", "reason": ""}
    add(2.0, *here, "migrated", **migrated, downtime_seconds=0.19, guest=guest)
    return both
