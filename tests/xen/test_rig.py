"""The rig's own judgement: what is the emulator's fault, and what is not."""

from __future__ import annotations

import hashlib
import lzma
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.unavailable import unavailable
from tests.waiting import wait_for
from tests.xen import cache, crossings, emulator, host_tools, runner, shadow_xen
from tests.xen.cache import REPOSITORY
from tests.xen.crossings import Crossing
from tests.xen.dom0 import agent, guest, kernel_log
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.lab import Lab
from tests.xen.emulator import (
    SILENCE_SECONDS,
    Emulator,
    EmulatorError,
    MachineError,
    is_frozen,
    seconds_wanted,
)
from tests.xen.images import SUITES, Suite, unpacked
from tests.xen.machine import Outcome
from tests.xen.runner import Machines, Plan
from tests.xen.scenarios import SCENARIOS, Case, cases, with_those_before

EVERY = cases(list(SUITES), seldom=True)


@pytest.mark.parametrize(
    ("silence", "used", "frozen"),
    [
        (SILENCE_SECONDS, 0.1, True),
        (3 * SILENCE_SECONDS, 1.0, True),
        (SILENCE_SECONDS - 1, 0.0, False),
        (SILENCE_SECONDS, SILENCE_SECONDS / 2, False),
    ],
    ids=["idle and silent", "for long", "not for long enough", "busy and silent"],
)
def test_a_frozen_emulator_is_idle_and_silent(silence: float, used: float, frozen: bool) -> None:
    assert is_frozen(silence, used) is frozen


def test_who_waits_for_a_processor_is_not_idle() -> None:
    """Two processes that spin on one processor use one together, and want two."""
    (processor, *_) = os.sched_getaffinity(0)
    command = ["taskset", "-c", str(processor), sys.executable, "-c", "while True: pass"]
    spinning = [subprocess.Popen(command) for _ in range(2)]
    try:

        def wanted() -> float:
            return sum(seconds_wanted(process.pid) for process in spinning)

        before, began = wanted(), time.monotonic()
        wait_for(lambda: wanted() - before >= 2, "both have wanted a second")
        assert wanted() - before > 1.5 * (time.monotonic() - began)
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def test_a_dom0_that_is_silent_gets_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU, with nothing to boot, tells of each key."""
    if not shutil.which("qemu-system-x86_64"):
        unavailable("needs Debian's package qemu-system-x86")
    monkeypatch.setattr(emulator, "LATE_SECONDS", 0.5)
    monkeypatch.setattr(emulator, "_FREEZE_POLL_SECONDS", 0.1)
    (tmp_path / "heartbeat").touch()
    console = tmp_path / "console"
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-machine", "pc"]
    command += ["-m", "16", "-display", "none", "-net", "none", "-trace", "input_event_key_qcode"]
    machine = Emulator(command, tmp_path, console)
    try:
        machine.ask("qmp_capabilities")
        for _ in machine.until(tmp_path / "never", 60, "a key"):
            if "shift" in console.read_text(errors="replace"):
                break
    finally:
        machine.end()


def test_crashed_programs_are_found_in_the_kernel_log() -> None:
    lines = [
        "xl[412]: segfault at 8 ip 00007f2b5c3d sp 00007ffd error 4 in libxenlight.so.4.17[1+2]",
        "traps: xenstored[185] general protection fault ip:55 sp:77 error:0 in xenstored[55+1]",
        "traps: sh[9] trap invalid opcode ip:55 sp:77 error:0 in dash[55+1]",
        "xen-save-helper[77]: segfault at 0 ip 00 sp 00 error 6",
        "EXT4-fs (vda): mounted filesystem with ordered data mode. Quota mode: none.",
    ]
    found = [fault["program"] for fault in kernel_log.faults(lines)]
    assert found == ["xl", "xenstored", "sh", "xen-save-helper"]


def bzimage(payload: bytes) -> bytes:
    """A bzImage with as much of Linux's boot protocol as is needed to find the payload."""
    setup_sectors, offset = 2, 100
    image = bytearray((1 + setup_sectors) * 512 + offset)
    image[0x1F1] = setup_sectors
    struct.pack_into("<II", image, 0x248, offset, len(payload))
    return bytes(image) + payload + b"relocations"


def test_a_kernel_is_unpacked() -> None:
    elf = b"\x7fELF" + bytes(1000)
    assert unpacked(bzimage(lzma.compress(elf) + b"size")) == elf


def test_a_kernel_that_is_packed_in_another_way_is_not_taken_for_an_elf_image() -> None:
    with pytest.raises(ValueError, match="no kernel that this can unpack"):
        unpacked(bzimage(b"\x1f\x8b\x08"))
    with pytest.raises(ValueError, match="no kernel that this can unpack"):
        unpacked(bzimage(lzma.compress(b"something else")))


@pytest.fixture
def own_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt has no source yet; the file to name one in."""
    for name in ("state/lists/partial", "cache/archives/partial", "parts"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "status").touch()
    sources = tmp_path / "sources.list"
    sources.touch()
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{sources}"; Dir::Etc::sourceparts "{tmp_path}/parts";'
        f'Dir::State "{tmp_path}/state"; Dir::State::status "{tmp_path}/status";'
        f'Dir::Cache "{tmp_path}/cache"; APT::Sandbox::User "";'
    )
    monkeypatch.setenv("APT_CONFIG", str(config))
    return sources


@pytest.fixture
def mirror(own_apt: Path, tmp_path: Path) -> Path:
    """The directory of a mirror with a package, but no source, which that machine's apt knows."""
    for name, label in (("security", "Debian-Security"), ("mirror", "Debian")):
        release = tmp_path / name / "dists" / "somewhen"
        (release / "main" / "binary-amd64").mkdir(parents=True)
        packages = b"Package: some\nVersion: 1\nArchitecture: amd64\nFilename: some.deb\n"
        (release / "main" / "binary-amd64" / "Packages").write_bytes(packages)
        digest = hashlib.sha256(packages).hexdigest()
        (release / "Release").write_text(
            f"Origin: Debian\nLabel: {label}\nCodename: somewhen\nArchitectures: amd64\n"
            f"Components: main\nDate: Sat, 01 Jan 2022 00:00:00 UTC\n"
            f"SHA256:\n {digest} {len(packages)} main/binary-amd64/Packages\n"
        )
        with own_apt.open("a") as sources:
            sources.write(f"deb [trusted=yes] file:{tmp_path}/{name} somewhen main\n")
    subprocess.run(["apt-get", "-qq", "update"], check=True, capture_output=True, timeout=60)
    return tmp_path / "mirror"


def test_sources_come_from_where_this_machine_has_debians_packages(mirror: Path) -> None:
    assert host_tools.debian_archive().rstrip("/") == f"file:{mirror}"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for hypervisors."""
    for module in (cache, shadow_xen):
        monkeypatch.setattr(module, "CACHE", tmp_path / "cached")
    return tmp_path / "cached"


def test_a_maker_leaves_those_of_other_things_alone(own_cache: Path) -> None:
    """The names of some begin with the names of others."""
    own_cache.mkdir()
    stale = own_cache / "building-machine-some-abcdefgh"
    stale.mkdir()
    with cache.scratch("machine-some-other") as other, cache.scratch("machine-some") as made:
        assert other.is_dir()
        assert made.is_dir()
        assert not stale.exists()


@pytest.mark.usefixtures("mirror", "own_cache")
def test_where_the_archive_lacks_the_source_it_is_said_what_else_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(shadow_xen.SOURCES_VARIABLE, raising=False)
    with pytest.raises(host_tools.MissingToolsError, match=shadow_xen.SOURCES_VARIABLE):
        shadow_xen.shadow_xen(Suite("somewhen", "4.99"))


def test_a_hypervisor_is_built_from_sources_that_are_at_hand(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "sources" / "4.99"
    (tree / "xen").mkdir(parents=True)
    (tree / "Config.mk").write_text("release = one\n")
    makefile = tree / "xen" / "Makefile"
    makefile.write_text("include ../Config.mk\nall:\n\techo $(release) >xen\nolddefconfig:\n")
    monkeypatch.setenv(shadow_xen.SOURCES_VARIABLE, str(tmp_path / "sources"))
    one = shadow_xen.shadow_xen(Suite("somewhen", "4.99"))
    assert one.parent == own_cache
    assert one.read_text() == "one\n"
    assert sorted(path.name for path in (tree / "xen").iterdir()) == ["Makefile"]
    makefile.write_text("all:\n\techo two >xen\nolddefconfig:\n")
    assert shadow_xen.shadow_xen(Suite("somewhen", "4.99")).read_text() == "two\n"


def test_a_directory_of_sources_that_does_not_exist_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(shadow_xen.SOURCES_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(host_tools.MissingToolsError, match="not a directory"):
        shadow_xen.shadow_xen(Suite("somewhen", "4.99"))


@pytest.mark.usefixtures("own_apt")
def test_a_machine_without_debians_archive_is_told_what_to_do() -> None:
    with pytest.raises(host_tools.MissingToolsError, match="apt-get update"):
        host_tools.debian_archive()


def test_scenarios_have_names_of_their_own_and_known_suites() -> None:
    names = Counter(scenario.name for scenario in SCENARIOS)
    assert names.most_common(1)[0][1] == 1
    assert {suite for scenario in SCENARIOS for suite in scenario.suites} <= set(SUITES)


def taken(plan: Plan, workers: int) -> list[list[Case]]:
    """What each of this many machines gets if all cases take equally long, and pass."""
    got: list[list[Case]] = [[] for _ in range(workers)]
    running: dict[int, Case] = {}
    while True:
        for number, cases_of in enumerate(got):
            case = plan.take(cases_of[-1].setup if cases_of else None)
            if case is not None:
                cases_of.append(case)
                running[number] = case
        if not running:
            assert not plan.wait()
            return got
        for case in running.values():
            plan.ended(case, True)
        running.clear()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_every_case_runs_once_and_no_machine_idles_while_there_are_some(workers: int) -> None:
    wanted = EVERY
    got = taken(Plan(wanted), workers)
    assert Counter(case for cases_of in got for case in cases_of) == Counter(wanted)
    lengths = [len(cases_of) for cases_of in got]
    assert max(lengths) - min(lengths) <= 1


def test_what_comes_after_another_one_waits_for_it() -> None:
    """And other cases are run meanwhile."""
    leave, arrive, back = (case for case in EVERY if "cross-release" in named(case))
    other = EVERY[0]
    plan = Plan([leave, arrive, back, other])
    assert {plan.take(None), plan.take(None)} == {leave, other}
    assert plan.take(None) is None
    plan.ended(other, True)
    assert plan.take(other.setup) is None
    plan.ended(leave, True)
    assert plan.wait()
    assert plan.take(other.setup) == arrive
    plan.ended(arrive, False)
    assert plan.take(arrive.setup) is None
    assert not plan.wait()


def test_who_waits_for_another_ones_end_hears_of_it() -> None:
    leave, arrive, _back = (case for case in EVERY if "cross-release" in named(case))
    plan = Plan([leave, arrive])
    assert plan.take(None) == leave
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(plan.wait)
        plan.ended(leave, True)
        assert waiting.result(20)


def named(case: Case) -> str:
    return case.scenario.name


def test_with_a_scenario_goes_what_has_to_come_before_it() -> None:
    (back,) = (case for case in EVERY if named(case) == "cross-release-back")
    names = [named(case) for case in with_those_before([back])]
    assert names == ["cross-release-leave", "cross-release-arrive", "cross-release-back"]
    everything = EVERY
    assert with_those_before(everything) == everything


def test_a_machine_keeps_to_its_setup_while_there_are_cases_of_it() -> None:
    free = [case for case in EVERY if case.before is None]
    (cases_of,) = taken(Plan(free), 1)
    changes = sum(one.setup != other.setup for one, other in pairwise(cases_of))
    assert changes == len({case.setup for case in cases_of}) - 1


def test_two_machines_begin_with_two_images_and_end_in_the_largest_setup() -> None:
    one, other = taken(Plan(EVERY), 2)
    assert one[0].suite != other[0].suite
    # Except for cases that cannot begin before another has ended.
    for cases_of in (one, other):
        free = [case for case in cases_of if case.before is None]
        assert free[-1].setup == ("bookworm", False)


def test_of_a_setup_what_may_take_longest_is_begun_first() -> None:
    plain = [case for case in EVERY if case.setup == ("bookworm", False)]
    (cases_of,) = taken(Plan(plain), 1)
    limits = [case.scenario.limit for case in cases_of]
    assert limits == sorted(limits, reverse=True)


class FakeMachine:
    """Stands in for `Machine`: the scenario of each start ends with the next of `ends`."""

    ends: ClassVar[list[Outcome | Exception]] = []
    starts: ClassVar[int] = 0
    ran: ClassVar[list[tuple[str, str | None]]] = []

    def __init__(self, setup: object, wheel: Path, directory: Path) -> None:
        type(self).starts += 1
        self.usable = True
        self.xen, self.start_seconds, self.install_seconds = "4.17.5", 30.0, 1.0

    def run_scenario(self, name: str, limit: float, given: Path | None = None) -> Outcome:
        self.ran.append((name, given and (given / "by").read_text()))
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    def hand_over(self, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "by").write_text(self.ran[-1][0])

    def close(self) -> None:
        self.usable = False


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeMachine]]:
    monkeypatch.setattr(runner, "Machine", FakeMachine)
    monkeypatch.setattr(runner, "wheel", lambda: Path("/nowhere.whl"))
    monkeypatch.setattr(runner, "machine_of", lambda *setup: setup)
    FakeMachine.ends, FakeMachine.starts, FakeMachine.ran = [], 0, []
    yield FakeMachine
    assert FakeMachine.ends == []


PASSED = Outcome("passed", 1.0, "")
FAILED = Outcome("failed", 1.0, "")
CASE = EVERY[0]


def spoiled() -> EmulatorError:
    return EmulatorError("QEMU idle")


@pytest.mark.parametrize("faults", [0, 1, 2])
def test_what_the_emulator_spoils_runs_again_on_a_fresh_machine(
    fake: type[FakeMachine], tmp_path: Path, faults: int
) -> None:
    fake.ends = [*(spoiled() for _ in range(faults)), PASSED]
    machines = Machines(tmp_path)
    assert machines.run(CASE) is PASSED
    assert (fake.starts, len(machines.spoiled)) == (faults + 1, faults)


def test_what_the_emulator_spoils_runs_again_twice_at_most(
    fake: type[FakeMachine], tmp_path: Path
) -> None:
    fake.ends = [spoiled(), spoiled(), spoiled()]
    machines = Machines(tmp_path)
    with pytest.raises(EmulatorError):
        machines.run(CASE)
    assert (fake.starts, len(machines.spoiled)) == (3, 3)


@pytest.mark.parametrize("end", [FAILED, Outcome("timeout", 1.0, "")])
def test_a_scenario_that_fails_is_never_run_again(
    fake: type[FakeMachine], tmp_path: Path, end: Outcome
) -> None:
    fake.ends = [end]
    machines = Machines(tmp_path)
    assert machines.run(CASE) is end
    assert (fake.starts, machines.spoiled) == (1, [])


def test_a_scenario_under_which_dom0_goes_down_is_never_run_again(
    fake: type[FakeMachine], tmp_path: Path
) -> None:
    fake.ends = [MachineError("dom0 went down")]
    machines = Machines(tmp_path)
    with pytest.raises(MachineError):
        machines.run(CASE)
    assert fake.starts == 1


def test_without_a_free_machine_the_table_is_still_told(
    fake: type[FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.ends = [PASSED, TimeoutError("2 machines of this rig are running, for 7200 s")]
    names = ["baseline", "baseline-damage-is-noticed", "xl-migrate-pvh"]
    assert runner.run_scenarios(names, ["bookworm"], 1, None, seldom=True) == 1
    told = capsys.readouterr().out
    assert told.count("no machine") == 2
    assert "1 of 3 passed" in told


def test_what_a_scenario_hands_over_is_given_to_the_one_after_it(
    fake: type[FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.ends = [PASSED, PASSED, PASSED]
    assert runner.run_scenarios(["cross-release-back"], list(SUITES), 2, None, seldom=True) == 0
    assert fake.ran == [
        ("cross-release-leave", None),
        ("cross-release-arrive", "cross-release-leave"),
        ("cross-release-back", "cross-release-arrive"),
    ]
    assert "3 of 3 passed" in capsys.readouterr().out


def test_what_comes_after_a_scenario_that_failed_is_not_run(
    fake: type[FakeMachine], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.ends = [PASSED, FAILED]
    assert runner.run_scenarios(["cross-release-back"], list(SUITES), 2, None, seldom=True) == 1
    told = capsys.readouterr().out
    assert told.count("not run") == 1
    assert "1 of 3 passed" in told


def test_a_single_scenario_has_what_comes_before_it_run_once(
    fake: type[FakeMachine], tmp_path: Path
) -> None:
    (back,) = (case for case in EVERY if named(case) == "cross-release-back")
    fake.ends = [PASSED, FAILED]
    machines = Machines(tmp_path)
    for _ in range(2):
        with pytest.raises(MachineError, match="cross-release-arrive, which comes before, did not"):
            machines.run(back)
    assert [name for name, _given in fake.ran] == ["cross-release-leave", "cross-release-arrive"]


CROSSING = Crossing("hvm", "Xen 4.17", "Xen 4.20", "xl", "xen-save-helper", "refused: a|b\nc", 1.4)


def test_the_table_of_crossings_is_kept(
    fake: type[FakeMachine], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.ends = [Outcome("passed", 1.0, "", crossings=[CROSSING])]
    assert (
        runner.run_scenarios(["cross-release-leave"], list(SUITES), 1, tmp_path, seldom=True) == 0
    )
    assert crossings.read(tmp_path / crossings.RESULTS_NAME) == [CROSSING]
    page = (tmp_path / crossings.PAGE_NAME).read_text()
    row = "| hvm | Xen 4.17 | Xen 4.20 | xl | xen-save-helper | refused: a\\|b c | 1 |"
    assert page.splitlines()[-1] == row
    assert "refused: a" in capsys.readouterr().out


def test_a_failure_is_explained_by_what_the_logs_end_with() -> None:
    outcome = Outcome("timeout", 1.0, "said", logs={"dom0's console": "a last line"})
    assert runner.explained(outcome).endswith("--- dom0's console ends:\na last line")


class FakeKernelLog:
    """What each call of `new_lines` returns."""

    def __init__(self, *finds: list[str]) -> None:
        self._finds = list(finds)

    def new_lines(self) -> list[str]:
        return self._finds.pop(0)


def test_a_crash_before_a_request_is_not_charged_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Lab, "collect_logs", lambda *_, **__: None)
    monkeypatch.setattr(Lab, "__init__", lambda *_: None)
    (tmp_path / "script").write_text("exit 0")
    kernel: Any = FakeKernelLog(["xl[1]: segfault at 8 ip"], ["xl[2]: segfault at 9 ip"])
    request = {"script": str(tmp_path / "script"), "limit": 20}
    outcome = agent._serve(request, tmp_path / "results", kernel)
    assert outcome["outcome"] == "passed"
    assert [fault["line"] for fault in outcome["faults"]] == ["xl[2]: segfault at 9 ip"]


def test_a_number_that_is_still_being_written_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest, "CONSOLES", tmp_path)
    log = tmp_path / "guest-g.log"
    counting = guest.Guest("g", "pvh", memory=96)
    log.write_text("count 0\r\ncount 1")
    assert counting.counts == [0]
    log.write_text("count 0\r\ncount 12\n")
    assert counting.counts == [0, 12]


def test_a_gate_holds_and_no_terminal_ends_it(tmp_path: Path) -> None:
    gate = Gate(tmp_path / "gate")
    assert not gate.holds
    command = gate.command(4, "cat").removeprefix("exec ").replace("python3", sys.executable)
    with subprocess.Popen(
        shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    ) as held:
        try:
            assert held.stdin is not None
            held.stdin.write(b"heldmore")
            held.stdin.flush()
            wait_for(lambda: gate.holds, "the gate holds")
            held.send_signal(signal.SIGINT)
            gate.open()
            out, _err = held.communicate(timeout=20)
        finally:
            held.kill()
    assert (out, held.returncode) == (b"heldmore", 0)
    assert not gate.holds


def test_no_scenario_pays_for_what_only_one_needs() -> None:
    slow = ("numpy", "construct", "asyncio", "zmq", "rich")
    script = f"import sys, tests.xen.dom0.child; print([n for n in {slow} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY
    )
    assert done.stdout == "[]\n"


def test_the_drop_ins_page_installs_as_the_rig_does() -> None:
    readme = (REPOSITORY / "helper/README.md").read_text()
    assert shlex.join(agent.INSTALL) in readme
    (packages,) = re.findall(r"^    apt install (.*)$", readme, re.MULTILINE)
    assert set(packages.split()) <= set(SUITES["bookworm"].packages)
