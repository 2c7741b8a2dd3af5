"""Kill, stop or terminate any one process at a random moment of a migration, many times over.

Each run draws a mode, a process, a signal and a moment (a line of the trace, and a little time
after it) from a seed that its test id shows. Whatever happened, the guest is at one place, its
memory is right, the command ends in time with the exit code that says so, and nothing is left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from helper.hypervisors.interface import DomainSummary, GuestState
from helper.hypervisors.simulated.host import SimulatedHost, create_host
from tests.conftest import HostFactory
from tests.waiting import wait_for
from tests.whole.stage import Stage, command_of, descendants, send, toolstack

RUNS = int(os.environ.get("XEN_KILL_RUNS", "100"))
SEED = int(os.environ.get("XEN_KILL_SEED", "20170315"))

MODES: dict[str, list[str]] = {
    "stop-and-copy": ["--max-rounds", "0"],
    "precopy": ["--max-rounds", "3"],
    "postcopy": ["--max-rounds", "1", "--postcopy"],
}
ROLES = ("controller", "helper", "receiver", "receiver's helper", "guest", "guest there")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
MEMORY = 32 << 20
COMMAND_LIMIT = 45
"""Seconds within which the command must end, however many of its limits it runs into."""


def one_of(role: str, controller: int, stage: Stage, source_pid: int) -> int | None:
    """The pid of the process that plays `role`, None where it is not there (yet)."""
    if role == "controller":
        return controller
    if role == "guest":
        return source_pid
    if role == "guest there":
        pids = [row.pid for row in stage.destination.domains() if row.pid]
        return pids[0] if pids else None
    children = {p.pid: command_of(p) for p in descendants(controller)}
    receivers = [pid for pid, command in children.items() if " receive" in command]
    if role == "receiver":
        return receivers[0] if receivers else None
    its = {p.pid for pid in receivers for p in descendants(pid)}
    helpers = [pid for pid, command in children.items() if "--connect" in command]
    there = [pid for pid in helpers if (pid in its) == (role == "receiver's helper")]
    return there[0] if there else None


def gone(pid: int) -> bool:
    """Whether a process has ended, be it that nobody has asked for its status yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def moment(stage: Stage, events: int, process: subprocess.Popen[str]) -> None:
    """Return once the trace has `events` lines, or the command has ended."""
    wait_for(
        lambda: process.poll() is not None or len(stage.trace()) >= events,
        f"{events} events",
        COMMAND_LIMIT,
    )


def lines_of(mode: str, directory: Path) -> int:
    """How many lines the trace of an undisturbed run has."""

    def make_host(name: str) -> SimulatedHost:
        create_host(directory / name)
        return SimulatedHost(directory / name)

    stage = Stage(make_host, MEMORY, "random")
    try:
        done = subprocess.run(
            stage.migrate_arguments(*MODES[mode]), capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done
        return len(stage.trace())
    finally:
        for host in stage.hosts:
            for row in host.domains():
                host.destroy(row.domid)


@pytest.fixture(scope="session")
def lines_of_a_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """By mode; see lines_of."""
    return {mode: lines_of(mode, tmp_path_factory.mktemp("undisturbed")) for mode in MODES}


def settle(stage: Stage) -> None:
    """What a person does after a controller died: `recover` at both hosts."""
    for host in stage.hosts:
        ended = toolstack("recover", "g", "--host", host.directory)
        assert "Traceback" not in ended.err
        print(host.directory.name, ended)


def check(stage: Stage, code: int | None, died: bool) -> None:
    """The rules of design.md, «One guest, one place»; `code` None where the controller died."""
    here, there = (stage.guests(host) for host in stage.hosts)
    print(here, there)
    rows = [*here.values(), *there.values()]
    running = [row for row in rows if row.state is GuestState.RUNNING]
    assert len(running) <= 1
    assert not any(row.log_dirty for row in rows)
    assert not any(name.endswith("--incoming") for name in (*here, *there))
    if died:
        assert code != 2
        assert code != 0 or not here
    elif code == 0:
        assert not here
        assert runs(there["g"])
    elif code == 1:
        assert not there
        assert runs(here["g"])
    elif code == 3:
        assert here["g--postcopy-inconsistent"].state is GuestState.SUSPENDED
    elif code == 4:
        assert here["g--migratedaway"].state is GuestState.SUSPENDED
    else:
        assert code is None
        says_so = {"g--postcopy-inconsistent", "g--migratedaway"} & set(here)
        assert running or says_so, "the guest is nowhere, or nothing says what it waits for"
    for host in stage.hosts:
        for row in host.domains():
            if row.state is GuestState.RUNNING:
                report = host.verify(row.domid, 30)
                assert report.memory_ok, report.crash


def runs(row: DomainSummary) -> bool:
    return row.state is GuestState.RUNNING


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.timeout(180)
def test_one_guest_one_place(
    run: int, host_factory: HostFactory, lines_of_a_run: dict[str, int]
) -> None:
    draw = random.Random(SEED * 1_000 + run)
    mode = draw.choice(list(MODES))
    role = draw.choice(ROLES)
    number = draw.choice(SIGNALS)
    after = draw.randrange(lines_of_a_run[mode])
    delay = draw.random() * 0.005
    print(f"{mode}: {number.name} to the {role} after line {after} and {delay:.4f} s")

    stage = Stage(host_factory, MEMORY, "random")
    source_pid = stage.guests(stage.source)["g"].pid
    assert source_pid is not None
    process = subprocess.Popen(
        stage.migrate_arguments(*MODES[mode]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    struck: int | None = None
    try:
        moment(stage, after, process)
        time.sleep(delay)
        if process.poll() is None:
            struck = wait_for(
                lambda: process.poll() is not None or one_of(role, process.pid, stage, source_pid),
                f"a {role}",
                COMMAND_LIMIT,
            )
            struck = None if struck is True else struck
        helpers = [p.pid for p in descendants(process.pid)]
        if struck is not None:
            send(struck, number)
        if role == "controller" and number is signal.SIGSTOP and struck is not None:
            wait_for(
                lambda: (
                    not any(
                        psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"
                        for pid in helpers
                    )
                ),
                "the stopped controller's helpers to end",
                COMMAND_LIMIT,
            )
            send(struck, signal.SIGCONT)
        out, err = process.communicate(timeout=COMMAND_LIMIT)
    finally:
        if struck is not None:
            send(struck, signal.SIGCONT)
        if process.poll() is None:
            process.kill()
            process.communicate()
    print(out, err)

    killed_controller = process.returncode < 0
    for pid in helpers:
        wait_for(lambda pid=pid: not psutil.pid_exists(pid), f"process {pid} to end", COMMAND_LIMIT)
    if killed_controller or role == "receiver":
        settle(stage)
    code = None if killed_controller else process.returncode
    assert "Traceback" not in err
    if code is not None:
        assert json.loads(out)["outcome"] == {
            0: "success", 1: "running-at-source", 3: "postcopy-failed", 4: "undefined",
            5: "guest-died",
        }[code]  # fmt: skip
    check(stage, code, died=struck is not None and role.startswith("guest"))
