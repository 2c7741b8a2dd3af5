"""A simulated host: its directory, its domains, and how they are suspended, stopped and ended."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from tests.conftest import HostFactory, processes_under
from tests.helper.hypervisors.simulated.guests import (
    LIMIT,
    MIB,
    clone,
    hvm_params,
    steps_on,
    suspend,
    suspended,
)
from tests.waiting import gone, wait_for
from xen_save_helper.helper.hypervisors import open_domain
from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.simulated import domain_files
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.ipc_schema.streams.libxc_bodies import TscInfo
from xen_save_helper.toolstack.hosts import open_host
from xen_save_helper.toolstack.hosts.interface import GuestState, SuspendState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.hosts.simulated.process import StartingGuest

pytestmark = pytest.mark.usefixtures("no_leaks", "own_interpreters")

BLANK = {"c_info": {"type": "pvh"}, "b_info": {"max_memkb": 4096}}


# -- the directory ------------------------------------------------------------------------------


def test_a_directory_must_be_a_host(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no host directory"):
        SimulatedHost(tmp_path / "none")
    with pytest.raises(NotADirectoryError, match="not the directory of a simulated host"):
        SimulatedHost(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotADirectoryError):
        SimulatedHost(tmp_path / "file")
    with pytest.raises(FileExistsError, match="not empty"):
        create_host(tmp_path)
    (tmp_path / "xen-host.json").write_text("{")
    with pytest.raises(NotADirectoryError):
        SimulatedHost(tmp_path)
    (tmp_path / "xen-host.json").write_text('{"format": 99}')
    with pytest.raises(NotADirectoryError, match="format 99"):
        SimulatedHost(tmp_path)


def test_hosts_are_opened_by_uri(host: SimulatedHost) -> None:
    create_host(host.directory)
    domid = host.create(BLANK, "g")
    assert [row.domid for row in open_host(f"sim:{host.directory}").domains()] == [domid]
    domain = open_domain(f"sim:{host.directory}", domid)
    assert domain.getinfo().domid == domid
    domain.close()
    with pytest.raises(ProcessLookupError, match="no domain 77"):
        open_domain(f"sim:{host.directory}", 77)
    for unknown in ("kvm", "simulated:/", ""):
        with pytest.raises(OSError, match="not supported") as caught:
            open_host(unknown)
        assert caught.value.errno == errno.ENOTSUP


@pytest.mark.parametrize(
    "code",
    [
        "from xen_save_helper.toolstack.hosts import open_host; open_host('xen')",
        "from xen_save_helper.helper.hypervisors import open_domain; open_domain('xen', 1)",
    ],
)
def test_without_xen_a_real_host_and_its_domains_say_what_is_missing(code: str) -> None:
    # In a separate process: other tests load a libxenguest into this one.
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert "no Xen here" in ended.stderr.splitlines()[-1]


def test_domids_are_never_used_again_and_names_are_unique(host: SimulatedHost) -> None:
    first = host.create(BLANK, "g")
    with pytest.raises(FileExistsError, match="already a domain 'g'"):
        host.create(BLANK, "g")
    host.destroy(first)
    second = host.create(BLANK, "g")
    assert second > first
    third = host.create(BLANK, "h")
    with pytest.raises(FileExistsError):
        host.rename(third, "g")
    host.rename(third, "h--incoming")
    assert host.find("h--incoming") == third
    assert host.config(third)["c_info"]["name"] == "h--incoming"
    with pytest.raises(ProcessLookupError, match="no domain 'h'"):
        host.find("h")
    for name in ("", "a\nb", "x" * 201):
        with pytest.raises(ValueError, match="not a name"):
            host.rename(third, name)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({}, "not a domain configuration"),
        ({"c_info": {"type": "pv"}, "b_info": {"max_memkb": 4096}}, "c_info.type is 'pv'"),
        ({"c_info": {"type": "pvh"}, "b_info": {"max_memkb": -4}}, "max_memkb is -4"),
        ({"c_info": {"type": "pvh"}, "b_info": {"max_memkb": "much"}}, "max_memkb is 'much'"),
        ({**BLANK, "simulated": {"workload": "odd"}}, "unknown workload 'odd'"),
        ({**BLANK, "simulated": {"workload": [1]}}, "unknown workload list"),
        ({**BLANK, "simulated": [1]}, "simulated is list, not an object"),
        ({**BLANK, "simulated": None}, "simulated is missing, not an object"),
        ({**BLANK, "c_info": [1]}, "c_info is list, not an object"),
        ({**BLANK, "c_info": {"type": ["pvh"]}}, "c_info.type is list"),
        ({**BLANK, "b_info": "4096"}, "b_info is '4096', not an object"),
        ({**BLANK, "b_info": {"max_memkb": True}}, "max_memkb is True"),
        ({**BLANK, "b_info": {"max_memkb": 4096, "video_memkb": []}}, "video_memkb is list"),
        ({**BLANK, "b_info": {"max_memkb": 4096, "video_memkb": 1 << 31}}, "video_memkb is 2147"),
    ],
)
def test_a_bad_configuration_is_refused_and_leaves_nothing(
    host: SimulatedHost, config: dict[str, object], problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        host.create(config, "g")
    assert host.domains() == []


def test_a_very_long_directory_will_do(host_factory: HostFactory) -> None:
    host = host_factory("x" * 120)
    domid = host.create_guest("g", 2 * MIB, "idle")
    steps_on(host, domid)


def test_a_guest_outlives_its_maker_and_inherits_nothing(host_factory: HostFactory) -> None:
    host = host_factory("host")
    program = (
        "import os, sys; from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost;"
        "os.set_inheritable(os.open('/etc/passwd', 0), True);"
        "SimulatedHost(sys.argv[1]).create_guest('g', 2 << 20, 'idle')"
    )
    # The output ends with the maker: the guest does not hold the pipes.
    subprocess.run(
        [sys.executable, "-c", program, str(host.directory)],
        check=True, capture_output=True, timeout=LIMIT,
    )  # fmt: skip
    (row,) = host.domains()
    steps_on(host, row.domid)
    assert row.pid is not None
    process = psutil.Process(row.pid)
    assert process.ppid() != os.getpid()
    assert os.getsid(row.pid) != os.getsid(0)
    assert "/etc/passwd" not in [file.path for file in process.open_files()]


def test_a_maker_that_is_killed_leaves_nothing(host_factory: HostFactory) -> None:
    host = host_factory("host")
    program = (
        "import os, sys\n"
        "from xen_save_helper.toolstack.hosts.simulated import host\n"
        "host.StartingGuest.release = lambda self: os.kill(os.getpid(), 9)\n"
        "host.SimulatedHost(sys.argv[1]).create_guest('g', 2 << 20, 'idle')"
    )
    made = subprocess.run([sys.executable, "-c", program, str(host.directory)], check=False)
    assert made.returncode == -signal.SIGKILL
    wait_for(lambda: not processes_under(host.directory), "the guest ends")
    assert list((host.directory / "domains").iterdir()) == []
    host.create(BLANK, "g")


def test_destroy_leaves_nothing(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "write-heavy")
    (row,) = host.domains()
    assert row.pid is not None
    host.destroy(domid)
    assert gone(row.pid)
    assert host.domains() == []
    assert list((host.directory / "domains").iterdir()) == []
    for action in (host.destroy, host.pause, host.unpause, host.resume, host.report, host.config):
        with pytest.raises(ProcessLookupError, match=f"no domain {domid}"):
            action(domid)


def test_a_guest_ends_when_its_directory_is_gone(host: SimulatedHost) -> None:
    host.create_guest("g", 2 * MIB, "idle")
    (row,) = host.domains()
    assert row.pid is not None
    shutil.rmtree(host.directory / "domains" / str(row.domid))
    pid = row.pid
    wait_for(lambda: gone(pid), "the guest ends by itself")


# -- pause, suspend, resume ---------------------------------------------------------------------


def test_a_paused_guest_takes_no_step(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "write-heavy")
    steps_on(host, domid)
    host.pause(domid)
    report = host.report(domid)
    assert report.state is GuestState.PAUSED
    host.verify(domid, LIMIT)
    assert host.report(domid).steps == report.steps
    host.unpause(domid)
    steps_on(host, domid)


def test_a_guest_suspends_and_resumes(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "random")
    steps_on(host, domid)
    host.resume(domid)
    suspend(host, domid)
    report = host.report(domid)
    assert report.state is GuestState.SUSPENDED
    assert report.suspended_at is not None
    assert report.first_step_at is not None
    assert report.first_step_at < report.suspended_at
    with open_on_host(host.directory, domid) as domain:
        assert domain.getinfo().shutdown_reason is ShutdownReason.SUSPEND
        assert domain.hvm_getcontext()
    host.resume(domid)
    again = steps_on(host, domid)
    assert again.first_step_at is not None
    assert again.first_step_at > report.suspended_at
    suspend(host, domid)


def test_a_guest_that_refuses_is_withdrawn(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle", behaviour=Behaviour.REFUSE)
    request = host.suspend_request(domid)
    steps_on(host, domid)
    assert request.state() is SuspendState.REQUESTED
    assert request.withdraw()
    request.close()
    host.set_behaviour(domid, Behaviour.NORMAL)
    steps_on(host, domid)
    assert host.report(domid).state is GuestState.RUNNING


def test_a_late_guest_suspends_late_or_not_at_all(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle", behaviour=Behaviour.LATE, behaviour_seconds=1.5)
    request = host.suspend_request(domid)
    assert request.state() is SuspendState.REQUESTED
    assert request.withdraw()
    request.close()
    request = host.suspend_request(domid)
    assert suspended(request) is SuspendState.SUSPENDED
    assert not request.withdraw()
    request.close()
    host.resume(domid)
    request = host.suspend_request(domid)
    host.resume(domid)
    assert request.state() is SuspendState.REFUSED
    request.close()
    steps_on(host, domid)


def test_a_guest_can_die_of_the_request(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle", behaviour=Behaviour.DIE)
    request = host.suspend_request(domid)
    assert suspended(request) is SuspendState.CRASHED
    request.close()
    report = host.report(domid)
    assert (report.state, report.memory_ok) == (GuestState.CRASHED, True)
    assert "asked to suspend" in str(report.crash)
    with pytest.raises(OSError, match="has crashed"):
        host.resume(domid)


def test_a_guest_killed_under_a_request_shows_at_its_descriptor(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle", behaviour=Behaviour.REFUSE)
    request = host.suspend_request(domid)
    pid = host.domains()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert suspended(request) is SuspendState.CRASHED
    request.close()
    request = host.suspend_request(domid)
    assert suspended(request) is SuspendState.CRASHED
    request.close()


def test_a_killed_guest_is_crashed_until_it_is_destroyed(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle")
    pid = host.domains()[0].pid
    assert pid is not None
    with host.domain(domid) as before:
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not before.alive(), "the process ends")
        assert before.getinfo().shutdown_reason is ShutdownReason.CRASH
    (row,) = host.domains()
    assert (row.state, row.pid, row.name, row.memory) == (GuestState.CRASHED, None, "g", 2 * MIB)
    report = host.verify(domid, 1)
    assert (report.state, report.crash) == (GuestState.CRASHED, "the guest's process is gone")
    with host.domain(domid) as domain:
        assert domain.getinfo().shutdown_reason is ShutdownReason.CRASH
        domain.logdirty_off()
        with pytest.raises(ProcessLookupError, match="crashed"):
            _ = domain.shared
    for action in (host.pause, host.unpause, host.resume):
        with pytest.raises(ProcessLookupError, match=r"gone|crashed"):
            action(domid)
    host.destroy(domid)
    assert host.domains() == []


def test_a_stopped_guest_does_not_block_others(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle")
    quick = SimulatedHost(host.directory, timeout=0.2)
    pid = host.domains()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(TimeoutError, match="'pause'"):
        quick.pause(domid)
    with pytest.raises(TimeoutError, match="'resume'"):
        quick.resume(domid)
    with pytest.raises(TimeoutError, match="'verify'"):
        quick.verify(domid, 0.2)
    (row,) = quick.domains()
    assert row.state is GuestState.RUNNING
    request = quick.suspend_request(domid)
    assert request.state() is SuspendState.REQUESTED
    assert request.withdraw()
    request.close()
    quick.destroy(domid)
    assert quick.domains() == []


# -- registers and devices ----------------------------------------------------------------------


def test_a_restored_guest_runs_on_from_its_registers(host_factory: HostFactory) -> None:
    source, target = host_factory("a"), host_factory("b")
    for name, kind in (("h", "hvm"), ("p", "pvh")):
        domid = source.create_guest(name, 2 * MIB, "random", type=kind)
        steps_on(source, domid)
        suspend(source, domid)
        new = clone(source, domid, target, name)
        with (
            open_on_host(source.directory, domid) as old,
            open_on_host(target.directory, new) as domain,
        ):
            assert domain.hvm_getcontext() == old.hvm_getcontext()
            assert hvm_params(domain) == hvm_params(old)
            assert domain.cpu_policy() == old.cpu_policy()
            assert all(len(part) for part in domain.cpu_policy())
            assert domain.tsc_info() == old.tsc_info()
        before = source.report(domid)
        target.unpause(new)
        after = steps_on(target, new)
        assert after.steps > before.steps
        assert after.pages_checked > before.pages_checked
        report = target.verify(new, LIMIT)
        assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)
        assert report.pages_checked >= after.pages_checked + 512


def test_a_domain_without_registers_does_not_run(host: SimulatedHost) -> None:
    domid = host.create(BLANK, "g")
    with pytest.raises(OSError, match="no registers") as caught:
        host.unpause(domid)
    assert caught.value.errno == errno.EINVAL
    with (
        open_on_host(host.directory, domid) as domain,
        pytest.raises(OSError, match="no registers"),
    ):
        domain.hvm_getcontext()


def test_real_registers_are_kept_but_do_not_run(host: SimulatedHost) -> None:
    domid = host.create(BLANK, "g")
    real = bytes(range(256)) * 40
    with open_on_host(host.directory, domid) as domain:
        domain.hvm_setcontext(real)
        with pytest.raises(OSError, match="not that of a simulated guest") as caught:
            host.unpause(domid)
        assert caught.value.errno == errno.ENOEXEC
        assert domain.hvm_getcontext() == real
        for context in (b"", bytes(2 << 20)):
            with pytest.raises(OSError, match="HVM context of"):
                domain.hvm_setcontext(context)
    assert host.report(domid).state is GuestState.PAUSED
    assert host.domains()[0].workload is None


def test_registers_are_for_a_guest_that_stands_still(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        with pytest.raises(OSError, match="runs"):
            domain.hvm_getcontext()
        with pytest.raises(OSError, match="runs"):
            domain.hvm_setcontext(b"x")
    with pytest.raises(OSError, match="runs"):
        host.emulator_context(domid)


def test_parameters_and_policies_are_kept(host: SimulatedHost) -> None:
    domid = host.create(BLANK, "g")
    info = TscInfo(2, 3_000_000, 2**63, 7)
    with open_on_host(host.directory, domid) as domain:
        domain.hvm_param_set(1, 0xFEFFC)
        domain.set_tsc_info(info)
        domain.set_cpu_policy(b"c" * 48, b"m" * 32)
    with open_on_host(host.directory, domid) as domain:
        assert (1, 0xFEFFC) in hvm_params(domain)
        assert domain.tsc_info() == info
        assert domain.cpu_policy() == (b"c" * 48, b"m" * 32)
        with pytest.raises(OSError, match="CPUID leaves"):
            domain.set_cpu_policy(b"c" * 25, b"")
        with pytest.raises(OSError, match="MSR entries"):
            domain.set_cpu_policy(b"", b"m")
        with pytest.raises(OSError, match="no HVM parameter"):
            domain.hvm_param_set(64, 1)


def test_the_device_model_must_be_that_of_the_guest_and_the_moment(
    host_factory: HostFactory,
) -> None:
    source, target = host_factory("a"), host_factory("b")
    domid = source.create_guest("g", 2 * MIB, "idle")
    other = source.create_guest("other", 2 * MIB, "idle")
    for each in (domid, other):
        suspend(source, each)
    old = source.emulator_context(domid)
    source.resume(domid)
    steps_on(source, domid)
    suspend(source, domid)
    cases = (
        (None, "was not restored"),
        (old, "saved at step"),
        (source.emulator_context(other), "another guest"),
        (b"QEVM real", "not a simulated one"),
    )
    for number, (context, problem) in enumerate(cases):
        new = clone(source, domid, target, f"g{number}")
        target.restore_emulator(new, [], context)
        target.unpause(new)
        report = target.report(new)
        assert report.state is GuestState.CRASHED
        assert problem in str(report.crash)


def test_a_real_device_models_state_is_given_back_as_it_came(host: SimulatedHost) -> None:
    domid = host.create({**BLANK, "c_info": {"type": "hvm"}}, "g")
    xenstore = [(b"physmap/1/name", b"vga.vram\0\xff"), (b"empty", b"")]
    host.restore_emulator(domid, xenstore, b"QEVM\0real")
    assert host.emulator_xenstore_data(domid) == xenstore
    assert host.emulator_context(domid) == b"QEVM\0real"


def test_a_pvh_guest_has_no_device_model(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle", type="pvh")
    assert host.emulator_xenstore_data(domid) == []
    suspend(host, domid)
    assert host.emulator_context(domid) is None
    host.restore_emulator(domid, [], None)
    with pytest.raises(OSError, match="no device model"):
        host.restore_emulator(domid, [], b"x")


@pytest.mark.parametrize(
    ("memory", "workload", "rate", "problem"),
    [
        (100, "idle", None, "whole pages"),
        (2 * MIB, "odd", None, "there are idle"),
        (2 * MIB, "random", 0.0, "a rate of 0.0"),
    ],
)
def test_impossible_guests(
    host: SimulatedHost, memory: int, workload: str, rate: float | None, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        host.create_guest("g", memory, workload, rate=rate)
    assert host.domains() == []


@pytest.mark.parametrize(("workload", "low", "high"), [("sequential", 500, 4000), ("idle", 0, 0)])
def test_a_light_workload_keeps_its_rate_and_leaves_the_machine_alone(
    host: SimulatedHost, workload: str, low: float, high: float
) -> None:
    domid = host.create_guest("g", 8 * MIB, workload)
    (row,) = host.domains()
    assert row.pid is not None
    process = psutil.Process(row.pid)
    begin, used = host.report(domid), sum(process.cpu_times()[:2])
    wait_for(lambda: host.report(domid).steps >= begin.steps + 80, "80 steps")
    taken = sum(process.cpu_times()[:2]) - used
    assert taken < 0.3
    with open_on_host(host.directory, domid) as domain:
        pages = int(domain.shared.writes.sum()) // 2
    assert low * 0.2 <= pages <= high * LIMIT


# -- failures while a guest is made -------------------------------------------------------------


def test_a_guest_that_dies_at_its_start_leaves_nothing(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = StartingGuest.release

    def too_late(starting: StartingGuest) -> None:
        (row,) = host.domains()
        pid = row.pid
        assert pid is not None
        psutil.Process(pid).kill()
        # It lets go of its lock before its last descriptor is closed.
        wait_for(lambda: host.domains()[0].pid is None and gone(pid), "it has died")
        release(starting)

    monkeypatch.setattr(StartingGuest, "release", too_late)
    with pytest.raises(OSError, match="ended while it started"):
        host.create(BLANK, "g")
    assert host.domains() == []
    monkeypatch.undo()
    assert host.create(BLANK, "g")


@pytest.mark.parametrize("name", ["x" * 151, "\N{SNOWMAN}" * 17])
def test_a_name_leaves_room_for_what_a_migration_puts_behind_it(
    host: SimulatedHost, name: str
) -> None:
    with pytest.raises(ValueError, match="is too long: want at most 150 characters"):
        host.create_guest(name, MIB, "idle")
    host.create_guest(name[:-1], MIB, "idle")
    host.rename(host.find(name[:-1]), f"{name[:-1]}--postcopy-inconsistent")


# -- several at once ----------------------------------------------------------------------------


def test_a_guest_that_starts_slowly_keeps_nobody_waiting_but_has_its_name_and_memory(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, may_start = threading.Event(), threading.Event()

    class SlowToStart(StartingGuest):
        def __init__(self, domid: int, directory: int, timeout: float) -> None:
            starts.set()
            may_start.wait(10)
            super().__init__(domid, directory, timeout)

    host.bound_memory(3 * 4 * MIB)
    with monkeypatch.context() as patch, ThreadPoolExecutor(1) as aside:
        patch.setattr("xen_save_helper.toolstack.hosts.simulated.host.StartingGuest", SlowToStart)
        slow = aside.submit(host.create, BLANK, "slow")
        assert starts.wait(10)
        patch.undo()
        try:
            assert host.domains() == []
            quick = host.create(BLANK, "quick")
            with pytest.raises(FileExistsError, match="there is already a domain 'slow'"):
                host.create(BLANK, "slow")
            with pytest.raises(FileExistsError, match="there is already a domain 'slow'"):
                host.rename(quick, "slow")
            assert host.free_memory() == 4 * MIB
            host.clear_up()
        finally:
            may_start.set()
        assert host.summary(slow.result(10)).name == "slow"
    assert [row.name for row in host.domains()] == ["slow", "quick"]
    assert host.free_memory() == 4 * MIB


def test_a_guest_is_found_by_the_name_that_it_has_now(host: SimulatedHost) -> None:
    elsewhere = SimulatedHost(host.directory)
    first, second = host.create(BLANK, "first"), host.create(BLANK, "second")
    assert (elsewhere.find("first"), elsewhere.find("second")) == (first, second)
    host.rename(first, "third")
    host.rename(second, "first")
    assert (elsewhere.find("third"), elsewhere.find("first")) == (first, second)
    host.destroy(second)
    with pytest.raises(ProcessLookupError, match="there is no domain 'first'"):
        elsewhere.find("first")


def test_to_find_a_name_again_no_configuration_is_read_again(
    host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {name: host.create(BLANK, name) for name in ("first", "second", "third")}
    assert host.find("third") == made["third"]
    monkeypatch.setattr(domain_files, "read_config", lambda _fd: pytest.fail("it is read again"))
    assert {name: host.find(name) for name in made} == made
