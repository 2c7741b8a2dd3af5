"""migrate and receive: each outcome, and each end, as a real process, killed at each promise."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from tests.helper.hypervisors.simulated.guests import suspended
from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called, toolstack
from tests.toolstack.two_hosts import Side, run
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.ipc_schema.streams.phases import Phase
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.save import SaveParameters
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl import migrate as migration
from xen_save_helper.toolstack.xl.migrate_options import HostDestination
from xen_save_helper.toolstack.xl.outcome import Outcome

QUICK = (
    "--limit=suspend=2",
    "--limit=handshake=3",
    "--limit=ready=3",
    "--limit=abort=2",
    "--limit=stream_stall=3",
)
MODES = {
    "stop-and-copy": ("--max-rounds=0",),
    "precopy": (),
    "postcopy": ("--postcopy", "--max-rounds=1"),
}


def arguments(hosts: Hosts, *more: object, to: object = None) -> list[object]:
    return ["migrate", "g", "--host", hosts.source, "--to", to or hosts.destination, "--json",
            *QUICK, *more]  # fmt: skip


def migrate(hosts: Hosts, *more: object, to: object = None) -> Ended:
    return called(*arguments(hosts, *more, to=to))


def runs_on(hosts: Hosts, *, there: bool) -> None:
    """The guest runs at one place, under its name, and its memory is right."""
    host, other = (
        (hosts.at_destination, hosts.at_source)
        if there
        else (hosts.at_source, hosts.at_destination)
    )
    assert hosts.states(host) == {"g": "running"}
    assert hosts.states(other) == {}
    steps = host.report(host.find("g")).steps
    report = host.verify(host.find("g"), 30)
    assert report.memory_ok
    wait_for(lambda: host.report(host.find("g")).steps > steps, "it runs")
    assert not any(row.log_dirty for row in host.domains())
    assert hosts.journals() == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_success(hosts: Hosts, mode: str, kind: str) -> None:
    hosts.guest(type=kind)
    ended = migrate(hosts, *MODES[mode])
    assert ended.code == 0, ended
    result = ended.json
    assert (result["outcome"], result["rc"], result["reason"]) == ("success", 0, "")
    assert result["mode"] == mode
    assert result["guest"]["host"] == str(hosts.destination)
    assert result["guest"]["memory_ok"] is True
    assert result["downtime_seconds"] > 0
    runs_on(hosts, there=True)


def test_there_and_back(hosts: Hosts) -> None:
    hosts.guest()
    assert migrate(hosts).code == 0
    back = ["migrate", "g", "--host", hosts.destination, "--to", hosts.source, "--postcopy"]
    assert called(*back).code == 0
    runs_on(hosts, there=False)


def test_over_a_command(hosts: Hosts) -> None:
    hosts.guest()
    receiver = " ".join([*TOOLSTACK, "receive", "--host", str(hosts.destination)])
    ended = migrate(hosts, to=f"REMARK={'longer-than-any-name' * 20} exec {receiver}")
    assert ended.code == 0, ended
    assert ended.json["guest"] == {
        "host": None, "state": None, "steps": None, "pages_checked": None, "memory_ok": None,
    }  # fmt: skip
    assert ended.json["downtime_seconds"] > 0
    runs_on(hosts, there=True)


def test_a_guest_that_refuses_to_suspend(hosts: Hosts) -> None:
    hosts.guest(behaviour=Behaviour.REFUSE)
    ended = migrate(hosts, "--limit=suspend=0.3")
    assert ended.code == 1
    assert ended.json["rc"] == -8
    assert ended.json["outcome"] == "running-at-source"
    runs_on(hosts, there=False)
    hosts.at_source.set_behaviour(hosts.at_source.find("g"), Behaviour.NORMAL)
    runs_on(hosts, there=False)


def test_a_guest_that_suspends_too_late(hosts: Hosts) -> None:
    hosts.guest(behaviour=Behaviour.LATE, behaviour_seconds=1.5)
    ended = migrate(hosts, "--limit=suspend=0.5")
    assert ended.code == 1
    time.sleep(1.0)  # the time in which it would have suspended
    runs_on(hosts, there=False)


def test_a_guest_that_dies(hosts: Hosts) -> None:
    hosts.guest(behaviour=Behaviour.DIE)
    ended = migrate(hosts)
    assert ended.code == 5
    assert ended.json["outcome"] == "guest-died"
    assert ended.json["guest"]["state"] == "crashed"
    assert hosts.states(hosts.at_source) == {"g": "crashed"}
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


def test_the_name_is_taken_there(hosts: Hosts) -> None:
    """It is told before the guest stands still for it."""
    hosts.guest()
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    for mode in MODES.values():
        ended = migrate(hosts, *mode)
        assert ended.code == 1
        assert "another guest 'g' here already" in ended.json["reason"]
        assert ended.json["bytes_sent"] in (None, 0)
        assert hosts.states(hosts.at_source) == {"g": "running"}
        assert hosts.states(hosts.at_destination) == {"g": "running"}
        assert hosts.journals() == []


def test_the_name_is_taken_meanwhile(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(*arguments(hosts, "--events", events, "--bandwidth=32M"))
    wait_for(lambda: first(events, lambda e: e["event"] == "phase"), "the helper is at work")
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert "destination: there is already a domain 'g'" in json.loads(out)["reason"]
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert hosts.journals() == []


def test_within_one_host(hosts: Hosts) -> None:
    domid = hosts.guest()
    ended = migrate(hosts, to=hosts.source)
    assert ended.code == 0, ended
    runs_on_one(hosts, domid)


def runs_on_one(hosts: Hosts, before: int) -> None:
    (row,) = hosts.at_source.domains()
    assert (row.name, row.state.value) == ("g", "running")
    assert row.domid != before
    assert hosts.at_source.verify(row.domid, 30).memory_ok
    assert hosts.journals() == []


FAKE = """
import os, sys
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.toolstack.inspect.walk import inspect
os.write(1, xl_handshake.BANNER.data)
with open(0, "rb", buffering=0, closefd=False) as stream:
    entries = inspect(stream)
    next(entry for entry in entries if entry.layer == "xl")
    os.write(1, xl_handshake.encode_verdict(xl_handshake.Verdict(0, "")))
    os.write(1, xl_handshake.RECEIVING.data)
    next(entry for entry in entries if (entry.layer, entry.name) == ("libxl", "END"))
os.write(1, {said!r})
if {go!r}:
    assert os.read(0, 1000) == xl_handshake.GO.data
    os.write(1, {after_go!r})
if {stay!r}:
    os.read(0, 1)
"""


def fake_receiver(
    tmp_path: Path, *, said: bytes, go: bool = False, after_go: bytes = b"", stay: bool = True
) -> str:
    """A command that takes a stream and answers as it is told to."""
    script = tmp_path / "receiver.py"
    script.write_text(FAKE.format(said=said, go=go, after_go=after_go, stay=stay))
    return f"exec env PYTHONPATH={os.getcwd()} {sys.executable} {script}"


READY, REPORT = xl_handshake.READY.data, xl_handshake.REPORT.data


@pytest.mark.parametrize(
    ("answers", "code", "name", "state"),
    [
        pytest.param({"said": b"", "stay": False}, 1, "g", "running", id="gone before ready"),
        pytest.param({"said": b"nonsense " * 9}, 1, "g", "running", id="nonsense for ready"),
        pytest.param({"said": READY, "go": True, "stay": False}, 4,
                     "g--migratedaway", "suspended", id="gone after GO"),
        pytest.param({"said": READY, "go": True}, 4,
                     "g--migratedaway", "suspended", id="silent after GO"),
        pytest.param({"said": READY, "go": True, "after_go": REPORT + b"\1"}, 4,
                     "g--migratedaway", "suspended", id="not started, no permission"),
        pytest.param({"said": READY, "go": True,
                      "after_go": REPORT + b"\1" + xl_handshake.PERMISSION.data}, 1,
                     "g", "running", id="not started, permission"),
    ],
)  # fmt: skip
def test_what_a_receiver_may_say(
    hosts: Hosts, tmp_path: Path, answers: dict[str, Any], code: int, name: str, state: str
) -> None:
    hosts.guest()
    command = fake_receiver(tmp_path, **answers)
    # A process of its own: a journal whose process lives waits for that, and not for a person.
    ended = toolstack(*arguments(hosts, "--limit=handshake=1.5", to=command))
    assert ended.code == code, ended
    assert hosts.states(hosts.at_source) == {name: state}
    if state == "running":
        runs_on(hosts, there=False)
    else:
        (row,) = called("list", "--host", hosts.source, "--json").json
        assert "a person" in row["waits"]
        refused = called("recover", "g", "--host", hosts.source)
        assert refused.code == 1
        again = migrate(hosts)
        assert again.code == 1
        assert called("recover", "g", "--resume", "--host", hosts.source).code == 0
        runs_on(hosts, there=False)


@pytest.mark.parametrize(
    "command", ["exit 3", "yes 'this is no receiver of ours' | head -c 1000", "sleep 30"]
)
def test_no_receiver_at_all(hosts: Hosts, command: str) -> None:
    hosts.guest()
    ended = migrate(hosts, "--limit=handshake=0.5", to=command)
    assert ended.code == 1
    runs_on(hosts, there=False)


def first(events: Path, found: Callable[[dict[str, Any]], bool]) -> bool:
    if not events.exists():
        return False
    text = events.read_text()
    return any(found(json.loads(line)) for line in text[: text.rfind("\n") + 1].splitlines())


def receiver_of(process: subprocess.Popen[str]) -> psutil.Process:
    return next(
        child for child in psutil.Process(process.pid).children() if "receive" in child.cmdline()
    )


def gone(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert alive == []


PATIENT = tuple(f"--limit={name}=30" for name in ("suspend", "handshake", "ready", "stream_stall"))
"""For a migration that is to come as far as a certain action on a loaded machine."""
ATTEMPTS = 8
"""Migrations that a test begins until it has caught the moment: some last milliseconds."""


def at_action(
    hosts: Hosts,
    tmp_path: Path,
    action: str,
    strike: Callable[[subprocess.Popen[str]], bool],
    *more: object,
) -> subprocess.Popen[str]:
    """A migration of `g` that `strike` has struck when a side came to `action`. Where that was over
    already, it is begun anew."""
    for attempt in range(ATTEMPTS):
        events = tmp_path / f"events {attempt}"
        process = hosts.start(*arguments(hosts, "--events", events, *PATIENT, *more))
        wait_for(
            lambda events=events, process=process: (
                process.poll() is not None
                or first(events, lambda e: e["event"] == "handshake" and e["action"] == action)
            ),
            action,
        )
        if process.poll() is None and strike(process):
            return process
        print(*process.communicate(timeout=60))
        for host in (hosts.at_source, hosts.at_destination):
            for name in hosts.states(host):
                assert called("destroy", name, "--host", host.directory).code == 0
        hosts.guest(type="hvm")
    raise AssertionError(f"never caught: {action}")


ACTIONS = ["wait for the receiver", "send the guest", "wait until the receiver is ready",
           "rename the guest away", "wait for the destination's report",
           "destroy the source"]  # fmt: skip


@pytest.mark.parametrize("action", ACTIONS)
def test_controller_killed(hosts: Hosts, tmp_path: Path, action: str) -> None:
    """After `recover` at both ends the guest runs at one place, or is refused with a reason."""
    hosts.guest(type="hvm")
    family: list[psutil.Process] = []

    def kill(process: subprocess.Popen[str]) -> bool:
        family[:] = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        return process.wait(30) == -signal.SIGKILL

    at_action(hosts, tmp_path, action, kill).communicate(timeout=30)
    gone([p for p in family if "simulated" not in " ".join(_command(p))])
    here = called("recover", "g", "--host", hosts.source)
    there = called("recover", "g", "--host", hosts.destination)
    assert "Traceback" not in here.err + there.err
    if "may run at" in here.err:
        assert hosts.states(hosts.at_source) == {"g--migratedaway": "suspended"}
        running = hosts.states(hosts.at_destination) == {"g": "running"}
        way_out = "--destroy" if running else "--resume"
        assert called("recover", "g", way_out, "--host", hosts.source).code == 0
        runs_on(hosts, there=running)
    else:
        runs_on(hosts, there="g" in hosts.states(hosts.at_destination))


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


WAITS_FOR_GO = "wait for permission to start"
"""Postcopy does not wait for this."""


@pytest.mark.parametrize(
    ("action", "mode", "number"),
    [
        *product(("read the configuration",), MODES, (signal.SIGKILL,)),
        ("read the configuration", "precopy", signal.SIGTERM),
        *product(("receive the guest",), MODES, (signal.SIGKILL, signal.SIGTERM)),
        (WAITS_FOR_GO, "stop-and-copy", signal.SIGKILL),
        (WAITS_FOR_GO, "precopy", signal.SIGTERM),
    ],
)
def test_receiver_ended(
    hosts: Hosts, tmp_path: Path, mode: str, number: signal.Signals, action: str
) -> None:
    hosts.guest()

    def end(process: subprocess.Popen[str]) -> bool:
        try:
            receiver = receiver_of(process)
            if receiver.status() == psutil.STATUS_ZOMBIE:
                return False
            receiver.send_signal(number)
        except (StopIteration, psutil.NoSuchProcess):
            return False
        return True

    process = at_action(hosts, tmp_path, action, end, *MODES[mode], "--bandwidth=60M")
    out, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    code = process.returncode
    assert json.loads(out)["outcome"] == {
        0: "success", 1: "running-at-source", 3: "postcopy-failed", 4: "undefined"
    }[code]  # fmt: skip
    if code in {0, 1}:
        runs_on(hosts, there=code == 0)
    else:
        suffix = {3: "--postcopy-inconsistent", 4: "--migratedaway"}[code]
        assert hosts.states(hosts.at_source) == {f"g{suffix}": "suspended"}
        assert set(hosts.states(hosts.at_destination).items()) <= {("g", "running")}
    # A receiver killed while it makes its domain leaves a torn one, which the next one clears up.
    hosts.at_destination.destroy(hosts.at_destination.create_guest("next", 1 << 20, "idle"))


@pytest.mark.parametrize(
    ("mode", "number"),
    [
        *product(MODES, (signal.SIGINT,)),
        *product(("precopy",), (signal.SIGTERM, signal.SIGHUP)),
    ],
)
def test_a_user_aborts(hosts: Hosts, tmp_path: Path, mode: str, number: signal.Signals) -> None:
    hosts.guest(megabytes=64)
    events = tmp_path / "events"
    process = hosts.start(
        *arguments(hosts, "--events", events, "--bandwidth=16M", "--dirty-threshold=0",
                   *MODES[mode], "--max-rounds=1000" if mode != "stop-and-copy" else "--verbose")
    )  # fmt: skip
    pages = (Phase.PRECOPY.value, Phase.STOP_AND_COPY.value)
    wait_for(lambda: first(events, lambda e: e.get("name") in pages), "the first pages")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    assert json.loads(out)["outcome"] == "running-at-source"
    assert json.loads(out)["reason"] == "interrupted"
    assert json.loads(out)["bytes_sent"] > 0
    runs_on(hosts, there=False)


@pytest.mark.parametrize("times", [1, 2])
def test_a_user_aborts_past_the_transition(hosts: Hosts, tmp_path: Path, times: int) -> None:
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(
        *arguments(hosts, "--events", events, "--bandwidth=8M", *MODES["postcopy"])
    )
    pages = ("phase", Phase.POSTCOPY_PAGES.value)
    wait_for(
        lambda: first(events, lambda e: (e["event"], e.get("name")) == pages), "the last pages"
    )
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "interrupt it again" in process.stderr.readline()
    if times == 2:
        process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == (0 if times == 1 else 3), err
    result = json.loads(out)
    assert result["postcopy_transitioned"] == "done"
    if times == 1:
        runs_on(hosts, there=True)
    else:
        assert result["reason"] == "interrupted"
        assert hosts.states(hosts.at_source) == {"g--postcopy-inconsistent": "suspended"}


def test_a_receiver_is_ended_past_the_resumption(hosts: Hosts, tmp_path: Path) -> None:
    """The guest's newer state is there alone: the first signal does not lose it."""
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(
        *arguments(hosts, "--events", events, "--bandwidth=8M", *MODES["postcopy"])
    )
    wait_for(lambda: first(events, lambda e: e["event"] == "postcopy_resume_done"), "it runs there")
    receiver = receiver_of(process)
    receiver.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["postcopy_transitioned"] == "done"
    gone([receiver])
    runs_on(hosts, there=True)
    assert first(events, lambda e: (e["event"], e.get("followed")) == ("abort", False))


def test_a_guest_that_has_moved_on_was_migrated_all_the_same(hosts: Hosts) -> None:
    class Crossroads(SimulatedHost):
        def find(self, name: str) -> int:
            raise ProcessLookupError(errno.ESRCH, f"{name} is not here any more")

    domid = hosts.guest()
    side = Side(hosts.at_source)
    to = HostDestination(hosts.destination, Crossroads(hosts.destination))
    result = run(migration.migrate(side.ctx, domid, to, migration.MigrateOptions()))
    assert (result.outcome, result.rc) == (Outcome.SUCCESS, 0)
    assert (result.guest.host, result.guest.state) == (str(hosts.destination), None)
    runs_on(hosts, there=True)


def test_what_breaks_past_the_transition_resumes_nothing(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the guest may run at the destination."""

    async def broken(_ctx: object, parameters: SaveParameters) -> None:
        request = hosts.at_source.suspend_request(domid)
        suspended(request)
        request.close()
        parameters.on_transition()
        raise RuntimeError("a fault of the program")

    domid = hosts.guest()
    side = Side(hosts.at_source)
    to = HostDestination(hosts.destination, hosts.at_destination)
    monkeypatch.setattr(migration, "save_domain", broken)
    result = run(migration.migrate(side.ctx, domid, to, migration.MigrateOptions()))
    assert (result.outcome, result.rc) == (Outcome.POSTCOPY_FAILED, -3)
    assert hosts.states(hosts.at_source) == {"g--postcopy-inconsistent": "suspended"}
    (entry,) = journal.entries(hosts.source)
    assert entry.promise is journal.Promise.TRANSITION
    journal.remove(hosts.source, entry)


def test_a_receiver_that_ends_at_once_is_named_by_its_exit_status(hosts: Hosts) -> None:
    hosts.guest()
    ended = called("migrate", "g", "--to", "exit 7", "--host", hosts.source)
    assert ended.code == 1
    assert "before the receiver's banner; exit 7 ended with exit status 7" in ended.err
    runs_on(hosts, there=False)


def test_two_at_once(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=64)
    events = tmp_path / "events"
    process = hosts.start(*arguments(hosts, "--events", events, "--bandwidth=32M"))
    wait_for(lambda: first(events, lambda e: e["event"] == "phase"), "the helper is at work")
    ended = migrate(hosts)
    assert ended.code == 1
    assert "in the middle of an operation" in ended.json["error"]
    process.communicate(timeout=60)
    assert process.returncode == 0
    runs_on(hosts, there=True)


@pytest.mark.parametrize(
    ("message", "mode"), [("ready", "precopy"), ("report", "precopy"), ("sync", "postcopy")]
)
def test_the_receiver_has_more_time_for_a_guest_than_for_a_word(
    hosts: Hosts, message: str, mode: str
) -> None:
    """It starts the guest's devices, or the guest, before it says so; over a link that is not of
    this machine nobody can see whether it is stopped."""
    hosts.guest()
    plan = f"destination.controller/handshake.{message}:before-send=delay(4)"
    with mock.patch.dict(os.environ, {"XEN_SAVE_HELPER_FAULTS": plan}):
        ended = migrate(hosts, "--limit=ready=30", *MODES[mode])
    assert ended.code == 0, ended
    runs_on(hosts, there=True)
