"""Fixtures for tests with real guests: hosts, and checks that nothing of them is left."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, flock
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest

from tests import nursery
from tests.left_out import leave_out
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

# No deadline: a slow machine is no failure, and a hang has pytest-timeout's limit. The rest is set
# because hypothesis has other defaults if CI is set: each run tries examples of its own.
hypothesis.settings.register_profile(
    "ours",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("ours")

# A shell that starts the tests in the background ignores SIGINT for them, nohup SIGHUP, and what
# they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The workers for `-n auto`: many tests wait for a limit or a guest more than they compute."""
    return 2 * (os.cpu_count() or 1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the long tests, too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "long: much computing for what a change seldom breaks; with --long, or by file"
    )


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let one worker collect before the others do: in a fresh checkout it takes most of its time to
    compile the tests, which each of them would do, at the same time."""
    with Path(__file__).open() as lock:
        try:
            flock(lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            flock(lock, LOCK_SH)
        return (yield)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the long tests out unless they, or their file, are asked for."""
    if not config.getoption("--long"):
        leave_out(config, items, "long", lambda item, named: item.path in named)


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what is there before the first test: thousands of items,
    all modules. `no_leaks` collects after each of its tests, which would take 0.2 s of computing,
    and forked processes would copy what a collection touches."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _nursery() -> Iterator[None]:
    with nursery.nursery():
        yield


@pytest.fixture
def own_interpreters() -> Iterator[None]:
    """Processes that the test starts have an interpreter of their own, as users' have."""
    with nursery.own_interpreters():
        yield


@pytest.fixture(scope="session", autouse=True)
def _control_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Drop-ins and controllers of domains that are no simulated host's answer there."""
    directory = tmp_path_factory.mktemp("control") / "xen"
    with mock.patch.dict(os.environ, XEN_SAVE_HELPER_CONTROL=str(directory)):
        yield


CALM_RATE = 40
"""Pages a second."""


class CalmHost(SimulatedHost):
    """A host for tests of what is around a guest: its random ones write `CALM_RATE` pages a second
    unless a test names a rate. At their own 20,000 each takes a quarter of a processor from what is
    tested for as long as it runs."""

    def create_guest(
        self, name: str, memory_bytes: int, workload: str, rate: float | None = None, **more: Any
    ) -> int:
        if rate is None and workload == "random":
            rate = CALM_RATE
        return super().create_guest(name, memory_bytes, workload, rate, **more)


HostFactory = Callable[[str], SimulatedHost]

OURS = (
    "xen_save_helper.helper.hypervisors.simulated.guest",
    "xen_save_helper.helper.main",
    "xen_save_helper.helper.postcopy_link.page_server",
    "xen_save_helper.toolstack.commands.main",
)
"""The modules that our processes run."""
OUTLIVES = "--outlive 1"
"""Of a restoring helper that may go on as a pager."""


def open_descriptors() -> set[str]:
    """The descriptors of this process, with what each one is."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
        except FileNotFoundError:
            continue
    return found


def processes_under(directory: Path) -> list[str]:
    """Our live processes with a descriptor of `directory` or something in it."""
    found = []
    # Without psutil and buffers it takes a quarter of the time, and it is done after each test.
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            # A process that has ended, but has not been reaped, has no command line.
            with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
                command = file.read().decode(errors="replace").split("\0")
            if not any(module in command for module in OURS):
                continue
            fds = os.listdir(f"/proc/{pid}/fd")
            links = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in fds}
        except (FileNotFoundError, ProcessLookupError):
            continue
        if any(link.startswith(str(directory)) for link in links):
            found.append(f"{pid}: {' '.join(command).rstrip()}")
    return found


def sockets_under(directory: Path) -> list[str]:
    """Unix sockets bound to a path in `directory`."""
    return [
        str(path) for path in directory.rglob("*") if path.is_socket() and not path.is_symlink()
    ]


@contextmanager
def hosts_in(directory: Path, kind: type[SimulatedHost] = SimulatedHost) -> Iterator[HostFactory]:
    """Makes hosts by name. At the end all guests are destroyed, and nothing may be left: no
    process, no socket, no directory of a domain."""
    hosts: list[SimulatedHost] = []

    def make(name: str) -> SimulatedHost:
        create_host(directory / name)
        hosts.append(kind(directory / name))
        return hosts[-1]

    yield make
    for host in hosts:
        for row in host.domains():
            host.destroy(row.domid)
        assert list((host.directory / "domains").iterdir()) == []
        # What a killed operation has left is removed by the next look at its host.
        assert control.operations(host.directory / "control") == []
        assert sockets_under(host.directory) == []
    left = processes_under(directory)
    if any(OUTLIVES in one for one in left):
        # Nobody waits for the end of a pager whose guest was destroyed.
        wait_for(lambda: not processes_under(directory), "pagers end")
        return
    assert left == []


@pytest.fixture
def host_factory(tmp_path: Path) -> Iterator[HostFactory]:
    """`hosts_in` the test's own directory."""
    with hosts_in(tmp_path) as make:
        yield make


@pytest.fixture
def host(host_factory: HostFactory) -> SimulatedHost:
    """A simulated host without guests."""
    return host_factory("host")


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Checks that the test leaves no new descriptor in this process. Our shared memory has no name
    (memfd), so only a descriptor could keep it; /dev/shm is for other programs."""
    descriptors = open_descriptors()
    yield
    # What only a caught exception still holds is not a leak.
    gc.collect()
    assert open_descriptors() - descriptors == set()
