"""Kill, stop or terminate any one process at a random moment of a migration.

The runs go through every mode, process and signal, in an order and at moments (a line of the
trace, and a little time after it) that come from a seed. Whatever happened, the guest is at one
place, its memory is right, the command ends in time with the exit code that says so, and nothing is
left.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import CalmHost, HostFactory
from tests.once import once
from tests.toolstack.stage import called
from tests.waiting import gone, wait_for
from tests.whole.stage import Stage, command_of, descendants, send
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack.hosts.interface import DomainSummary, GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.rules.handshake import Receiver, Sender

RUNS = int(os.environ.get("XEN_KILL_RUNS", "54"))
SEED = int(os.environ.get("XEN_KILL_SEED", "20170315"))

MODES: dict[str, list[str]] = {
    "stop-and-copy": ["--max-rounds", "0"],
    "precopy": ["--max-rounds", "3"],
    "postcopy": ["--max-rounds", "1", "--postcopy"],
}
ROLES = ("controller", "helper", "receiver", "receiver's helper", "guest", "guest there")
SIGNALS = (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM)
SQUARES = [
    [
        (list(MODES)[(role + number + square) % len(MODES)], ROLES[role], SIGNALS[number])
        for role, number in product(range(len(ROLES)), range(len(SIGNALS)))
    ]
    for square in range(len(MODES))
]
"""All cells, in three parts. In each part every two of mode, role and signal meet."""
for square in SQUARES:
    random.Random(SEED).shuffle(square)
CELLS = [cell for square in SQUARES for cell in square]
"""What the runs go through in turn."""
ATTEMPTS = 8
"""Moments that a run tries until the process is there to be struck: it may end earlier than in the
run that the moments are drawn from."""
MEMORY = 16 << 20
COMMAND_LIMIT = 45
"""Seconds within which the command must end, however many of its limits it runs into."""


STOPPED = ("controller", signal.SIGSTOP)
STANDS_STILL = 3.0
"""Seconds for which a controller is stopped: more than any process here looks on for, and less than
the other side's limits."""


def runs_by_cost() -> Iterator[object]:
    """All runs; those after the first part of the cells are long ones."""
    for run in range(RUNS):
        yield pytest.param(run, marks=[pytest.mark.long] if run >= len(SQUARES[0]) else [])


class Died(Enum):
    """Which guest was really killed."""

    NONE = "none: neither, or a copy that had not been let run"
    SOURCE = "the one at the source"
    DESTINATION = "the one that ran at the destination"


def one_of(role: str, controller: int, stage: Stage, source_pid: int) -> int | None:
    """The pid of the process that plays `role`, None if there is none (yet)."""
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


def moment(stage: Stage, events: int, process: subprocess.Popen[str]) -> None:
    """Return once the trace has `events` lines, or the command has ended."""
    wait_for(
        lambda: process.poll() is not None or stage.trace_length() >= events,
        f"{events} events",
        COMMAND_LIMIT,
    )


LAST_LINES: dict[str, tuple[str, str, str | None]] = {
    "helper": ("controller", "helper_exited", None),
    "receiver": ("controller", "receiver_exited", None),
    "receiver's helper": ("receiver", "helper_exited", None),
    "guest": ("controller", "handshake", Sender.DESTROY.value),
}
"""Process, event and action of the line that says that a role's process is gone, or about to be;
the other roles' last as long as the trace."""


def moments_of(trace: list[dict[str, Any]]) -> dict[str, int]:
    """How many lines an undisturbed run's trace has while each role's process is there."""
    lines = [(line["process"], line["event"], line.get("action")) for line in trace]
    ends = {role: lines.index(last) + 1 for role, last in LAST_LINES.items()}
    return {role: ends.get(role, len(lines)) for role in ROLES}


def undisturbed(mode: str, directory: Path) -> dict[str, int]:
    """`moments_of` a migration in which nothing is struck."""

    def make_host(name: str) -> SimulatedHost:
        create_host(directory / name)
        return CalmHost(directory / name)

    stage = Stage(make_host, MEMORY, "random")
    try:
        done = subprocess.run(
            stage.migrate_arguments(*MODES[mode]), capture_output=True, check=False, timeout=60
        )
        assert done.returncode == 0, done
        return moments_of(stage.trace())
    finally:
        for host in stage.hosts:
            for row in host.domains():
                host.destroy(row.domid)


@pytest.fixture(scope="session")
def moments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """By mode and role; see moments_of."""

    def find(path: Path) -> None:
        found = {mode: undisturbed(mode, tmp_path_factory.mktemp("undisturbed")) for mode in MODES}
        path.write_text(json.dumps(found))

    found: dict[str, dict[str, int]] = json.loads(
        once(tmp_path_factory, "moments", find).read_text()
    )
    return found


def settle(stage: Stage) -> None:
    """What a person does after a controller died: `recover` at both hosts."""
    for host in stage.hosts:
        ended = called("recover", "g", "--host", host.directory)
        assert "Traceback" not in ended.err
        print(host.directory.name, ended)


def check(stage: Stage, code: int | None, died: Died, stopped_here: bool) -> None:
    """Check the rule of teardown.md: one guest, one place. `code` is None if the controller died;
    `stopped_here`: the guest at the source was stopped all the time."""
    if code == 4 and stopped_here and "g" in stage.guests(stage.source):
        # It could not be seen to run again; its journal stands for that.
        assert journals(stage)
        settle(stage)
        code = 1
    here, there = (stage.guests(host) for host in stage.hosts)
    print(here, there)
    rows = [*here.values(), *there.values()]
    running = [row for row in rows if row.state is GuestState.RUNNING]
    assert len(running) <= 1
    assert not any(row.log_dirty for row in rows)
    assert not any(name.endswith("--incoming") for name in (*here, *there))
    if died is Died.SOURCE:
        assert code in {0, 3, 5}
    elif died is Died.DESTINATION:
        assert code in {0, 3}
    else:
        assert code != 5
    if code == 0:
        assert not here
        assert died is Died.DESTINATION or runs(there["g"])
    elif code == 1:
        assert not there
        assert runs(here["g"])
    elif code == 3:
        kept = {GuestState.SUSPENDED} | ({GuestState.CRASHED} if died is Died.SOURCE else set())
        assert here["g--postcopy-inconsistent"].state in kept
    elif code == 4:
        assert here["g--migratedaway"].state is GuestState.SUSPENDED
    elif code == 5:
        assert not there
        assert here["g"].state is GuestState.CRASHED
    else:
        assert code is None
        says_so = {"g--postcopy-inconsistent", "g--migratedaway"} & set(here)
        assert running or says_so, "the guest is nowhere, or nothing says what it waits for"
    if not any(name != "g" for name in here):
        assert journals(stage) == []
    for host in stage.hosts:
        for row in host.domains():
            if row.state is GuestState.RUNNING:
                report = host.verify(row.domid, 30)
                assert report.memory_ok, report.crash


def runs(row: DomainSummary) -> bool:
    return row.state is GuestState.RUNNING


def journals(stage: Stage) -> list[str]:
    return [path.name for host in stage.hosts for path in host.directory.glob("*journal*")]


@dataclass(frozen=True)
class Struck:
    """How a migration ended whose process `pid` was struck, and which processes were there."""

    pid: int
    code: int
    out: str
    err: str
    helpers: list[int]


def strike(
    stage: Stage, mode: str, role: str, number: signal.Signals, after: int, delay: float
) -> Struck | None:
    """Migrate, and signal the process that plays `role` at the given moment, or as soon as it is
    there. Returns None if it was already gone."""
    source_pid = stage.guests(stage.source)["g"].pid
    assert source_pid is not None
    process = subprocess.Popen(
        stage.migrate_arguments(*MODES[mode]),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    struck: int | None = None
    helpers: list[int] = []
    try:
        moment(stage, after, process)
        time.sleep(delay)
        pid = wait_for(
            lambda: process.poll() is not None or one_of(role, process.pid, stage, source_pid),
            f"a {role}",
            COMMAND_LIMIT,
        )
        helpers = [p.pid for p in descendants(process.pid)]
        if pid is not True and not gone(pid) and send(pid, number):
            struck = pid
        if (role, number) == STOPPED and struck is not None:
            # Nobody but the user lets it go on.
            time.sleep(STANDS_STILL)
            send(struck, signal.SIGCONT)
        out, err = process.communicate(timeout=COMMAND_LIMIT)
    finally:
        if struck is not None:
            send(struck, signal.SIGCONT)
        if process.poll() is None:
            process.kill()
            process.communicate()
    print(out, err)
    for pid in helpers:
        wait_for(lambda pid=pid: not psutil.pid_exists(pid), f"process {pid} to end", COMMAND_LIMIT)
    if struck is None:
        return None
    return Struck(struck, process.returncode, out, err, helpers)


def let_run(trace: list[dict[str, Any]]) -> bool:
    """Whether the destination has let its guest run."""
    started = Receiver.REPORT_STARTED.value
    return any(
        (event["event"] == "handshake" and event["action"] == started)
        or (event["event"] == "postcopy_resume_done" and event["rc"] == 0)
        for event in trace
        if event["process"] == "receiver"
    )


def who_died(stage: Stage, role: str, number: signal.Signals) -> Died:
    if number is signal.SIGSTOP or not role.startswith("guest"):
        return Died.NONE
    if role == "guest":
        return Died.SOURCE
    return Died.DESTINATION if let_run(stage.trace()) else Died.NONE


@pytest.fixture
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Of sockets, temporary and half-written files, in directories that only this test has."""
    # A socket's path has no room for much more.
    with tempfile.TemporaryDirectory(prefix="kill-") as short:
        places = [Path(short) / name for name in ("run", "tmp")]
        for name, place in zip(("XDG_RUNTIME_DIR", "TMPDIR"), places, strict=True):
            place.mkdir()
            monkeypatch.setenv(name, str(place))
        yield
        assert [os.listdir(place) for place in places] == [[], []]
        assert [path for path in tmp_path.rglob("*") if "partial" in path.name] == []


@pytest.mark.usefixtures("nothing_left_behind")
@pytest.mark.parametrize("run", list(runs_by_cost()))
@pytest.mark.timeout(300)
def test_one_guest_one_place(
    run: int, host_factory: HostFactory, moments: dict[str, dict[str, int]]
) -> None:
    mode, role, number = CELLS[run % len(CELLS)]
    draw = random.Random(SEED * 1_000 + run)
    for attempt in range(ATTEMPTS):
        after = draw.randrange(moments[mode][role])
        delay = draw.random() * 0.005
        print(f"{mode}: {number.name} to the {role} after line {after} and {delay:.4f} s")
        stage = Stage(lambda name, n=attempt: host_factory(f"{n}/{name}"), MEMORY, "random")
        struck = strike(stage, mode, role, number, after, delay)
        if struck is not None:
            break
    assert struck is not None, f"no {role} was ever there to be struck"

    killed_controller = struck.code < 0
    if killed_controller or role == "receiver":
        settle(stage)
    code = None if killed_controller else struck.code
    assert "Traceback" not in struck.err
    if code is not None:
        assert json.loads(struck.out)["outcome"] == {
            0: "success", 1: "running-at-source", 3: "postcopy-failed", 4: "undefined",
            5: "guest-died",
        }[code]  # fmt: skip
    if (role, number) == STOPPED:
        assert code == 0, "time in which it was stopped counts nowhere"
    stopped_here = role == "guest" and number is signal.SIGSTOP
    check(stage, code, who_died(stage, role, number), stopped_here)
