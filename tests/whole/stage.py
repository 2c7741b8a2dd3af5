"""Two simulated hosts and the real commands on them, for tests of the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import trace_lines
from tests.conftest import HostFactory
from xen_save_helper.toolstack.hosts.interface import DomainSummary
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

TOOLSTACK = [sys.executable, "-m", "xen_save_helper.toolstack.commands.main"]

QUICK_LIMITS = {
    "helper_start": 10,
    "stopped": 2,
    "suspend": 3,
    "abort": 2,
    "stream_stall": 4,
    "handshake": 8,
    "ready": 8,
}
"""Limits of a migration in these tests: what stands still is noticed in seconds, not minutes."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def toolstack(*arguments: str | Path, limit: float = 60) -> Ended:
    """Run one command to its end."""
    done = subprocess.run(
        [*TOOLSTACK, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


class Stage:
    """A source and a destination with one running guest `g`."""

    def __init__(
        self, make_host: HostFactory, memory: int, workload: str, kind: str = "hvm"
    ) -> None:
        self.source = make_host("source")
        self.destination = make_host("destination")
        self.events = self.source.directory.parent / "events"
        self.source.create_guest("g", memory, workload, type=kind)

    @property
    def hosts(self) -> tuple[SimulatedHost, SimulatedHost]:
        return self.source, self.destination

    def guests(self, host: SimulatedHost) -> dict[str, DomainSummary]:
        """The domains of a host, by name."""
        return {row.name: row for row in host.domains()}

    def migrate_arguments(self, *more: str) -> list[str]:
        limits = [f"--limit={name}={seconds}" for name, seconds in QUICK_LIMITS.items()]
        return [
            *TOOLSTACK, "migrate", "g",
            "--host", str(self.source.directory), "--to", str(self.destination.directory),
            "--json", "--events", str(self.events), *limits, *more,
        ]  # fmt: skip

    def trace(self) -> list[dict[str, Any]]:
        """The events so far, whole lines only."""
        return trace_lines.read(self.events)

    def trace_length(self) -> int:
        return trace_lines.length(self.events)


def descendants(pid: int) -> Iterator[psutil.Process]:
    try:
        yield from psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return


def command_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def send(pid: int, number: signal.Signals) -> bool:
    """Signal a process; returns False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
