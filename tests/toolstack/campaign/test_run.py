"""Runs with a plan in force: what strikes where, and what the verdict says of it."""

from __future__ import annotations

import glob
import json
import os
import re
import signal
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.toolstack.campaign.runs import LIMITS, run
from tests.toolstack.stage import TOOLSTACK, wait_for
from xen_save_helper.helper.faults.injector import Injector
from xen_save_helper.ipc_schema.faults.actions import ACTIONS
from xen_save_helper.ipc_schema.faults.plan import Plan, parse
from xen_save_helper.ipc_schema.faults.points import Who
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE
from xen_save_helper.ipc_schema.streams.xl_handshake import (
    BANNER,
    SYNC,
    VERDICT,
    VERDICT_SIZE,
)
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.play import RunStage
from xen_save_helper.toolstack.campaign.run import FaultRun, Verdict, run_fault
from xen_save_helper.toolstack.commands.main import main
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.timeout(180)


# Ends that the judge might take for another one; a campaign judges the others.
@pytest.mark.long
@pytest.mark.parametrize(
    ("plan", "mode", "fired", "code"),
    [
        ("destination/complete:after-answer=kill", "postcopy", ("destination/",), 0),
        ("source/complete:before-send=kill", "postcopy", ("source/",), 0),
        ("source.controller/complete:heard=drop", "postcopy", ("source.controller/",), 0),
        ("destination/phase.postcopy-pages=stop", "postcopy", ("destination/",), 0),
        ("link/stream@5000=stall(0.5)", "postcopy", ("link/",), 0),
        ("link/back@130=cut", "postcopy", ("link/",), 3),
        ("link/handshake.go=cut", "live", ("link/",), 4),
        ("link/handshake.report=reset", "stop-and-copy", ("link/",), 4),
        ("link/handshake.sync=cut", "postcopy", ("link/",), 3),
        ("controller/handshake.go:after-send=hang-up", "live", ("source.controller/",), 4),
        ("controller/handshake.report:before-send=kill", "live", ("destination.c",), 4),
        ("controller/handshake.sync:before-send=truncate", "postcopy", ("destination.c",), 3),
        ("guest/suspend=crash", "live", ("source.guest/",), 5),
        ("page-server/offers=kill", "link", ("source.page-server/",), 0),
        ("page-server/offers=signal(TERM)", "link", ("source.page-server/",), 0),
        ("page-server/drained=exit(0)", "link", ("source.page-server/",), 3),
        ("pager/all-in=kill", "link", ("destination.pager/",), 3),
        ("pager/loads=stop", "link", ("destination.pager/",), 3),
        ("tunnel/stream@1000003#*=cut", "link", ("tunnel/",), 0),
        ("tunnel/stream@1000003=flip", "link", ("tunnel/",), 0),
        ("tunnel/back@1500=stall", "link", ("tunnel/",), 0),
        ("source/record.libxc.POSTCOPY_OFFER:write=duplicate", "link", ("source/",), 1),
        ("destination/complete:before-answer=exit(0)", "link", ("destination/",), 1),
        ("destination/exit=stop", "link", ("destination/",), 0),
        ("source.controller/handshake.report:heard=signal(TERM)", "link", ("source.c",), 0),
        ("source.controller/handshake.ready:heard=kill", "link", ("source.controller/",), -9),
        ("source/precopy_policy:before-answer=answer(0)", "link", ("source/",), 1),
        ("source/record.libxc.STATIC_DATA_END:write=epipe", "link", ("source/",), 1),
        ("source/record.libxc.STATIC_DATA_END:write=enospc", "link", ("source/",), 1),
    ],
)
def test_a_fault_strikes_and_the_rules_hold(
    plan: str, mode: str, fired: tuple[str, ...], code: int
) -> None:
    verdict = run(plan, mode)
    assert verdict.holds, verdict.problems
    assert verdict.seen["exit code"] == code
    # Which side is struck first is no promise.
    struck = zip(sorted(verdict.fired), sorted(fired), strict=True)
    assert all(one.startswith(start) for one, start in struck)


@pytest.mark.long
def test_a_page_server_that_is_ended_while_it_serves() -> None:
    """If that is seen before GO, the guest runs on at the source; else its missing pages are
    lost."""
    verdict = run("page-server/serves=signal(TERM)", "link")
    assert verdict.holds, verdict.problems
    assert verdict.seen["exit code"] in {1, 3}


def test_a_helper_that_dies_before_its_start_is_named_by_its_end() -> None:
    # What cannot be told to a dead helper fails, too, and may fail before its end is known.
    plan = "source/hello=exit(3); source.controller/start:before-send=fail(EHOSTUNREACH)"
    verdict = run(plan, "live")
    assert verdict.holds, verdict.problems
    assert "exit status 3" in str(verdict.seen["migrate said"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory(prefix="fr-") as directory:
        process = subprocess.Popen(
            [*TOOLSTACK, "faults", "run", "source/suspend:before-answer=delay(60)"],
            env={**os.environ, "TMPDIR": directory},
            stderr=subprocess.PIPE,
            text=True,
        )
        guest = f"{directory}/*/run/source/domains/1/process.json"
        wait_for(lambda: glob.glob(guest), "the guest")
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        assert process.returncode in {1, 128 + number}
        assert os.listdir(directory) == []


@pytest.mark.parametrize(
    ("lost", "code", "at_source"),
    [("hang-up", 4, "g--migratedaway (suspended)"), ("delay(0.1)", 1, "g (running)")],
)
def test_a_guest_that_the_destination_gives_back(lost: str, code: int, at_source: str) -> None:
    plan = (
        "controller/handshake.go:heard=fail(EIO); "
        f"controller/handshake.permission:before-send={lost}"
    )
    verdict = run(plan, "live")
    assert verdict.holds, verdict.problems
    assert len(verdict.fired) == 2
    assert (verdict.seen["exit code"], verdict.seen["at the source"]) == (code, at_source)


def test_a_pager_that_dies_early_is_the_helper_that_was_killed() -> None:
    verdict = run("pager/connects=kill", "link")
    assert verdict.holds, verdict.problems
    assert "the helper was killed by signal 9" in str(verdict.seen["migrate said"])
    assert verdict.seen["at the source"] == "g (running)"


def test_recover_refuses_after_a_controller_that_died_past_go() -> None:
    verdict = run("source.controller/handshake.report:heard=kill", "live")
    assert verdict.holds, verdict.problems
    (said,) = verdict.seen["recover said"]
    assert "may run at" in said
    assert verdict.seen["at the source"] == "g--migratedaway (suspended)"
    assert verdict.seen["at the destination"] == "g (running)"


def test_chance_on_the_link_is_the_seeds() -> None:
    plans = [parse(f"link/stream@0#50%=cut; seed={seed}") for seed in range(40)]

    def strikes(plan: Plan) -> int:
        return len(Injector(plan.of(Who.LINK), plan.seed or 0).passes("stream", 0))

    struck = [strikes(plan) for plan in plans]
    assert struck == [strikes(plan) for plan in plans]
    assert 8 < sum(struck) < 32


def test_a_guest_that_refuses_gives_no_answer_at_all() -> None:
    assert ACTIONS["refuse"].doc == "the guest never answers, and runs on"
    verdict = run("guest/suspend=refuse", "live")
    assert verdict.holds, verdict.problems
    assert "did not acknowledge the suspend request in time" in str(verdict.seen["migrate said"])
    assert "g (running)" in str(verdict.seen["at the source"])


@pytest.mark.parametrize("who", ["source", "source.controller"])
def test_a_precopy_that_is_always_told_to_go_on_ends(who: str) -> None:
    verdict = run(f"{who}/precopy_policy:before-answer#*=answer(0)", "live")
    assert verdict.holds, verdict.problems
    assert "though it was told to end it" in str(verdict.seen["migrate said"])
    assert "g (running)" in str(verdict.seen["at the source"])


def test_a_stopped_receiver_is_ended_though_nobody_waits_for_it_any_more() -> None:
    plan = (
        "destination.controller/reply:after-send=stop; "
        "source.controller/switch_qemu_logdirty:heard=exit(0)"
    )
    verdict = run(plan, "postcopy")
    assert verdict.holds, verdict.problems
    assert len(verdict.fired) == 2


def test_a_link_that_keeps_the_report_of_the_end_is_judged_by_its_own_end() -> None:
    # A guest without faults: the back channel's octets are the same each time, but for one
    # POSTCOPY_READY more if there was anything to list. The last is POSTCOPY_COMPLETE.
    before = len(BANNER.data + VERDICT.data) + VERDICT_SIZE + 2 * HEADER_SIZE
    assert len(SYNC.data) // 2 > HEADER_SIZE
    verdict = run(f"link/back@{before + len(SYNC.data) // 2}=stall", "postcopy", "idle")
    assert verdict.holds, verdict.problems
    assert "closed the link before the end of postcopy" in str(verdict.seen["migrate said"])


def test_a_helper_that_hangs_while_it_saves_to_a_file_ends() -> None:
    limits = replace(LIMITS, callback=2, abort=1, stream_stall=1)
    verdict = run("source/phase.stop-and-copy=delay(100000)", "save", limits=limits)
    assert verdict.holds, verdict.problems
    assert "the helper has done nothing for 4 s" in str(verdict.seen["save said"])
    assert verdict.seconds < 60


def test_a_restored_guest_that_cannot_be_started_does_not_stay() -> None:
    verdict = run("destination/record.libxc.HVM_CONTEXT:read=garbage", "save")
    assert verdict.holds, verdict.problems
    assert "it cannot be started" in str(verdict.seen["restore said"])
    assert verdict.seen["at the destination"] == "no guest"


def test_a_restore_that_fails_leaves_the_file_whole() -> None:
    verdict = run("destination/complete:before-send=kill", "save")
    assert verdict.holds, verdict.problems
    assert (verdict.seen["exit code"], verdict.seen["restore's exit code"]) == (0, 1)


@pytest.mark.parametrize(
    ("plan", "mode"),
    [
        ("source.controller/complete:heard=kill", "postcopy"),
        ("source.controller/complete:after-answer=kill", "postcopy"),
        ("source.controller/record.libxl.END:write=kill", "postcopy"),
    ],
)
def test_a_guest_that_is_whole_outlives_its_sender(plan: str, mode: str) -> None:
    verdict = run(plan, mode)
    assert verdict.holds, verdict.problems
    assert verdict.seen["exit code"] == -9
    assert verdict.seen["at the destination"] == "g (running)"


def test_a_stopped_controller_is_killed_by_a_person_and_recovered() -> None:
    verdict = run("source.controller/complete:before-answer=stop", "stop-and-copy")
    assert verdict.holds, verdict.problems
    assert verdict.seen["exit code"] == -9
    assert verdict.seen["recover said"] == ["'g' is running here"]


def test_a_fault_that_never_fires_is_no_success() -> None:
    verdict = run("guest/suspend#3=refuse", "save")
    assert (verdict.kind, verdict.holds, verdict.fired) == ("did not fire", False, ())
    assert not verdict.problems


def test_a_verdict_comes_back_from_json() -> None:
    verdict = run("hello=delay(0.1); seed=5", "save")
    again = Verdict.from_json(json.loads(str(verdict)))
    assert again == verdict
    assert (again.seed, again.mode, again.kind) == (5, "save", "holds")
    assert {event["process"] for event in again.events} == {"controller", "helper"}


def test_the_seed_is_the_guests_too() -> None:
    plan = parse("hello=kill; seed=7")
    with (
        tempfile.TemporaryDirectory(prefix="fr-") as directory,
        RunStage(plan, Mode.SAVE, 1 << 20, "idle", Path(directory), LIMITS),
    ):
        host = SimulatedHost(Path(directory) / "source")
        assert host.config(host.find("g"))["simulated"]["seed"] == 7


def test_a_plan_without_a_seed_is_given_one_that_is_told() -> None:
    seeds = {run("hello=delay(0)", "save").seed for _ in range(2)}
    assert len(seeds) == 2


def test_all_processes_of_a_migration_have_the_seed_that_the_first_has_drawn(
    host: SimulatedHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.create_guest("g", 1 << 20, "idle")
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", "record.libxc.END:write#1%=garbage")
    there, events = str(tmp_path / "there"), tmp_path / "events"
    assert main(["init", there]) == 0
    given = ["--host", str(host.directory), "--events", str(events)]
    main(["migrate", "g", "--to", there, *given])
    for row in SimulatedHost(tmp_path / "there").domains():
        SimulatedHost(tmp_path / "there").destroy(row.domid)
    (drawn,) = re.findall(r"^xen-toolstack: faults: (seed=\d+)$", capsys.readouterr().err, re.M)
    lines = map(json.loads, events.read_text().splitlines())
    plans = [line["plan"] for line in lines if line["event"] == "faults"]
    assert plans == [f"record.libxc.END:write#1%=garbage; {drawn}"] * 2


def test_a_directory_without_room_for_sockets_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / ("x" * 70)
    with pytest.raises(ValueError, match="no room for a socket"):
        run_fault(FaultRun(parse("hello=kill"), Mode.LIVE, 1 << 20, "idle", directory))


def test_the_command_shows_the_trace_around_the_fault(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["faults", "run", "suspend:before-answer=kill", "--mode", "save"])
    said = capsys.readouterr().out
    assert code == 0, said
    assert said.startswith("holds: ")
    assert "fired               source/suspend:before-answer=kill" in said
    (line,) = (line for line in said.splitlines() if line.startswith("> "))
    assert "controller's helper" in line
    assert "point=suspend:before-answer" in line


def test_a_wrong_plan_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "run", "suspnd:before-send=kill"]) == 2
    assert "close to it: suspend:before-send" in capsys.readouterr().err


def test_what_the_controller_cannot_strike_is_refused(
    host: SimulatedHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host.create_guest("g", 1 << 20, "idle")
    where = ["--host", str(host.directory)]
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", "controller/suspend:heard=drop")
    assert main(["save", "g", str(tmp_path / "f"), "--helper", "/bin/true", *where]) == 2
    assert "'controller/suspend:heard=drop': the controller has no such" in capsys.readouterr().err
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", "controller/suspend:herd=drop")
    assert main(["save", "g", str(tmp_path / "f"), *where]) == 2
    assert "suspend:heard" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["guest/suspend=refuse", "start=kill; link/stream@4096=cut"])
def test_what_no_process_of_a_migration_does_is_refused_there(
    plan: str,
    host: SimulatedHost,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    domid = host.create_guest("g", 1 << 20, "idle")
    monkeypatch.setenv("XEN_SAVE_HELPER_FAULTS", plan)
    there = str(tmp_path / "there")
    assert main(["init", there]) == 0
    assert main(["migrate", "g", "--to", there, "--host", str(host.directory)]) == 2
    said = capsys.readouterr().err
    assert f"'{plan.rpartition('; ')[2]}'" in said
    assert "`xen-toolstack faults run` does" in said
    assert host.report(domid).state is GuestState.RUNNING


def test_the_list_has_each_point_with_its_actions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["faults", "list", "--json"]) == 0
    rows = {row["point"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["link/stream@OFFSET"]["actions"][:2] == ["cut", "flip[(BIT)]"]
    assert rows["suspend:before-answer"]["actions"][0] == "kill"
    assert rows["postcopy_transition:before-send"]["sides"] == ["destination", "source"]
    assert rows["controller/suspend:heard"]["on_pipe"] is False
    assert rows["suspend:before-send"]["only"] == {
        "wrong-sequence": {"sides": ["destination", "source"], "on_pipe": False}
    }
    assert main(["faults", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    after = {point: lines.index(point) + 1 for point in ("exit", "suspend:before-send")}
    assert lines[lines.index("controller/suspend:heard") + 1].endswith(" (not on libxl's pipes)")
    assert lines[after["exit"]].endswith("about to exit")
    assert "wrong-sequence (not on libxl's pipes)" in lines[after["suspend:before-send"] + 1]
    stream = lines.index("stream@OFFSET")
    assert "enospc (source only)" in lines[stream + 2]
    (ready,) = (line for line in lines if line.startswith("    the controller has sent the ready"))
    assert ready.endswith("(destination only)")
