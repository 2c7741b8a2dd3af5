"""Processes that are stopped and continued: nothing is given up, and the stop is reported."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from tests import trace_lines
from tests.conftest import HostFactory
from tests.waiting import wait_for
from tests.whole.stage import TOOLSTACK
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

MEMORY: Final = 16 << 20
STOPPED: Final = 4.5
"""Seconds: beyond each limit but those of the streams."""
LIMITS: Final = {
    "helper_start": 3.5,
    "callback": 3,
    "suspend": 3,
    "handshake": 3.5,
    "abort": 2,
    "stream_stall": 20,
}


@dataclass
class Command:
    """One that runs, of `save`, `restore`, `migrate`, with its trace."""

    process: subprocess.Popen[str]
    trace: Path

    def events(self) -> list[dict[str, Any]]:
        return trace_lines.read(self.trace)

    def until(self, what: Callable[[dict[str, Any]], bool]) -> None:
        seen = 0

        def has_come() -> bool:
            nonlocal seen
            if self.process.poll() is not None:
                return True
            # To read all of it at each look would take a processor from what is looked at.
            if (length := trace_lines.length(self.trace)) == seen:
                return False
            seen = length
            return any(map(what, self.events()))

        wait_for(has_come, "the moment")
        assert self.process.poll() is None, self.process.communicate()

    def family(self) -> dict[str, psutil.Process]:
        """Those that live, by what each is."""
        ours = psutil.Process(self.process.pid)
        found = {"controller": ours}
        for child in ours.children(recursive=True):
            # One that ends meanwhile is not there.
            with contextlib.suppress(psutil.NoSuchProcess):
                words, is_ours = child.cmdline(), child.ppid() == ours.pid
                if "xen_save_helper.helper.main" in words:
                    found["helper" if is_ours else "receiver's helper"] = child
                elif "receive" in words and is_ours:
                    found["receiver"] = child
        return found

    def stand_still(self, names: set[str], number: signal.Signals = signal.SIGSTOP) -> None:
        """Stop those that are there, and let them go on."""
        stopped = [process for name, process in self.family().items() if name in names]
        assert stopped
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        time.sleep(STOPPED)
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def result(self) -> Any:
        out, err = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, err
        self.told = err
        return json.loads(out)


Start = Callable[..., Command]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    running: list[Command] = []

    def begin(*arguments: object) -> Command:
        trace = tmp_path / f"events {len(running)}"
        limits = [f"--limit={name}={seconds}" for name, seconds in LIMITS.items()]
        process = subprocess.Popen(
            [*TOOLSTACK, *map(str, arguments), "--json", "--events", trace, *limits],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A group of its own, as a shell gives to a job.
            process_group=0,
        )
        running.append(Command(process, trace))
        return running[-1]

    yield begin
    for command in running:
        command.process.kill()
        command.process.communicate()


def event(kind: str, /, **fields: object) -> Callable[[dict[str, Any]], bool]:
    return lambda found: {**found, "event": kind, **fields} == found


TRANSITIONED: Final = event("postcopy_resume_done", rc=0)
ALL: Final = {"controller", "helper", "receiver", "receiver's helper"}


def runs_at(host: SimulatedHost) -> None:
    (row,) = host.domains()
    assert (row.name, row.state) == ("g", GuestState.RUNNING)
    report = host.verify(row.domid, 30)
    assert report.memory_ok
    assert report.crash is None


def told_of(command: Command) -> list[float]:
    return [found["seconds"] for found in command.events() if found["event"] == "stood_still"]


@pytest.mark.parametrize(
    "names",
    [
        {"controller"},
        {"helper"},
        {"receiver"},
        {"receiver's helper"},
        ALL,
    ],
    ids=lambda names: " and ".join(sorted(names)),
)
def test_after_the_postcopy_transition(
    host_factory: HostFactory, start: Start, names: set[str]
) -> None:
    source, destination = host_factory("a"), host_factory("b")
    source.create_guest("g", MEMORY, "random")
    command = start(
        *("migrate", "g", "--host", source.directory, "--to", destination.directory),
        *("--postcopy", "--max-rounds", "0", "--bandwidth", "4M"),
    )
    command.until(TRANSITIONED)
    command.stand_still(names)
    result = command.result()
    assert result["outcome"] == "success"
    assert source.domains() == []
    runs_at(destination)
    assert max(told_of(command)) >= STOPPED - 1
    assert "stood still for" in " ".join((command.told, *result["warnings"]))
    if names != {"receiver's helper"}:
        assert result["stopped_seconds"] >= STOPPED - 1


def test_the_terminals_stop(host_factory: HostFactory, start: Start) -> None:
    """^Z, and `fg`: the processes of the job alone stand still."""
    source, destination = host_factory("a"), host_factory("b")
    source.create_guest("g", MEMORY, "random")
    command = start(
        *("migrate", "g", "--host", source.directory, "--to", destination.directory),
        *("--postcopy", "--max-rounds", "0", "--bandwidth", "4M"),
    )
    command.until(TRANSITIONED)
    os.killpg(command.process.pid, signal.SIGTSTP)
    wait_for(lambda: command.family()["controller"].status() == psutil.STATUS_STOPPED, "the stop")
    time.sleep(STOPPED)
    os.killpg(command.process.pid, signal.SIGCONT)
    assert command.result()["stopped_seconds"] >= STOPPED - 1
    runs_at(destination)


MOMENTS: Final = {
    "hello": (ALL, event("helper_started")),
    "precopy": ({"controller"}, event("phase", name="precopy", state="begin")),
    "suspend": (ALL, event("suspend_request")),
    "memory": ({"controller"}, event("phase", name="stop and copy", state="begin")),
    "the end": ({"controller"}, event("complete")),
    "the handshake": (ALL, event("handshake", action="wait until the receiver is ready")),
    "the report": (
        {"controller"},
        event("handshake", action="wait for the destination's report"),
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_precopy_migration(host_factory: HostFactory, start: Start, moment: str) -> None:
    names, comes = MOMENTS[moment]
    source, destination = host_factory("a"), host_factory("b")
    source.create_guest("g", MEMORY, "random")
    command = start(
        *("migrate", "g", "--host", source.directory, "--to", destination.directory),
        *("--bandwidth", "16M"),
    )
    command.until(comes)
    command.stand_still(names)
    assert command.result()["outcome"] == "success"
    assert source.domains() == []
    runs_at(destination)


@pytest.mark.parametrize("names", [ALL, {"helper"}], ids=["all", "helper"])
def test_a_save_and_its_restore(
    host_factory: HostFactory, start: Start, tmp_path: Path, names: set[str]
) -> None:
    """Through a pipe, which keeps each at work until it has stood still."""
    source, destination, pipe = host_factory("a"), host_factory("b"), tmp_path / "pipe"
    source.create_guest("g", MEMORY, "random")
    os.mkfifo(pipe)
    command = start("save", "g", pipe, "--host", source.directory)
    with pipe.open("rb") as stream:
        command.until(event("phase", name="headers", state="begin"))
        command.stand_still(names)
        saved = stream.read()
    command.result()
    assert max(told_of(command)) >= STOPPED - 1
    command = start("restore", pipe, "--host", destination.directory)
    with pipe.open("wb") as stream:
        stream.write(saved[: len(saved) // 2])
        command.until(event("helper_started"))
        command.stand_still(names)
        stream.write(saved[len(saved) // 2 :])
    command.result()
    runs_at(destination)


def test_a_helper_that_nobody_lets_go_on(host_factory: HostFactory, start: Start) -> None:
    """Its controller does, before the other side's limit is over."""
    source, destination = host_factory("a"), host_factory("b")
    source.create_guest("g", MEMORY, "random")
    command = start(
        *("migrate", "g", "--host", source.directory, "--to", destination.directory),
        *("--postcopy", "--max-rounds", "0", "--bandwidth", "4M", "--limit=stopped=2"),
    )
    command.until(TRANSITIONED)
    for name in ("helper", "receiver's helper"):
        command.family()[name].suspend()
    assert command.result()["outcome"] == "success"
    runs_at(destination)
