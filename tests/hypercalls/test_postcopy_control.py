"""Seeing and steering what goes on after a postcopy under libxl: `xen-toolstack postcopy`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.conftest import Releases
from tests.hypercalls.helpers import guest
from tests.hypercalls.machine import Domain, Machine
from tests.hypercalls.test_postcopy_link import BOTH, RAM, Migration, nothing_is_left
from tests.hypercalls.xenstored import Guest, Xenstored
from tests.waiting import gone, wait_for
from xen_save_helper.ipc_schema.control import Ask, Role, decode_line, encode_line
from xen_save_helper.toolstack.commands.main import main
from xen_save_helper.toolstack.helpers import control as control_of

pytestmark = pytest.mark.usefixtures("restored")

ALL: Final = range(0x100, 0x900)
"""What the guest writes: more than the two processes hold on their way."""


@pytest.fixture
def release(releases: Releases) -> Release:
    return releases("4.17")


@pytest.fixture
def source(machine: Machine) -> Domain:
    return guest(machine, 1, RAM)


@pytest.fixture
def control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "control"
    monkeypatch.setenv("XEN_SAVE_HELPER_CONTROL", str(directory))
    return directory


@pytest.fixture
def migration(
    release: Release, machine: Machine, source: Domain, tmp_path: Path, control: Path
) -> Iterator[Migration]:
    migration = Migration(release, machine, source, tmp_path / "events")
    migration.written = ALL
    migration.environment["XEN_SAVE_HELPER_CONTROL"] = str(control)
    yield migration
    nothing_is_left(migration.events)


class Command:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, Any, str]:
        """Its exit code, what it has printed as JSON, and its complaint."""
        self._capsys.readouterr()
        code = main(["postcopy", *arguments, "--json"])
        out, err = self._capsys.readouterr()
        return code, json.loads(out.splitlines()[0]), err


@pytest.fixture
def postcopy(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


class Halfway(NamedTuple):
    """Both helpers have ended, the page server is stopped, and most pages are still there."""

    server: int
    pager: int
    expected: dict[int, bytes]


@contextmanager
def halfway(
    migration: Migration, source: Domain, destination: Domain, control: Path
) -> Iterator[Halfway]:
    def stop(_fields: dict[str, Any]) -> None:
        wait_for(lambda: migration.traced("pages_kept"), "it keeps nobody waiting")
        os.kill(pid_of(Role.PAGE_SERVER, control), signal.SIGSTOP)

    migration.restored = stop
    with both_done(migration, source, destination, control) as half:
        yield half


@contextmanager
def both_done(
    migration: Migration, source: Domain, destination: Domain, control: Path
) -> Iterator[Halfway]:
    sent, received = migration.run(BOTH, BOTH)
    assert sent.result == received.result == (0, 0), (sent.logged, received.logged)
    expected = {pfn: source.page(pfn) for part in RAM for pfn in part}
    source.destroy()
    destination.resume()
    names = [path.stem for path in control.glob("*.json")]
    server, pager = (pid_in(names, role) for role in (Role.PAGE_SERVER, Role.PAGER))
    try:
        yield Halfway(server, pager, expected)
    finally:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGCONT)
        wait_for(lambda: gone(server) and gone(pager), "both end")


def pid_of(role: Role, control: Path) -> int:
    (path,) = wait_for(lambda: list(control.glob(f"{role.value}-*.json")), role.value)
    return pid_in([path.stem], role)


def pid_in(names: Sequence[str], role: Role) -> int:
    (name,) = (name for name in names if name.startswith(role.value))
    return int(name.rpartition("-")[2])


def test_a_pager_tells_how_long_the_guest_waits(
    migration: Migration, source: Domain, destination: Domain, control: Path, postcopy: Command
) -> None:
    with halfway(migration, source, destination, control) as half, ThreadPoolExecutor(1) as guest:
        code, (row,), _ = postcopy("status", "2")
        assert code == 0
        assert row["role"] == "pager"
        assert row["pages"] >= len(ALL)
        assert 0 < row["pages_left"] <= row["pages"]
        missing = ALL[-1]
        access = guest.submit(destination.access, missing)
        row = waits_for(postcopy, lambda row: row["longest_wait"] > 1.0)
        assert row["faults"] == 1
        row = waits_for(postcopy, lambda row: row["trouble"])
        assert "says nothing" in row["trouble"]
        code, _, complaint = postcopy("wait", "--timeout", "1")
        assert code == 1
        assert "pager of domain 2 (domid 2): " in complaint
        assert "pages are still to come" in complaint
        assert "page-server of domain 1 (domid 1): page-server-1-" in complaint
        assert "no answer within" in complaint

        os.kill(half.server, signal.SIGCONT)
        assert postcopy("wait")[0] == 0
        access.result(10)
        assert {pfn: destination.page(pfn) for pfn in half.expected} == half.expected
        assert postcopy("list")[:2] == (0, [])


def waits_for(postcopy: Command, condition: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []

    def seen() -> bool:
        rows[:] = postcopy("status", "2")[1]
        return bool(condition(rows[0]))

    wait_for(seen, "the pager says so", 30)
    return rows[0]


def test_they_are_among_all_that_goes_on(
    migration: Migration,
    source: Domain,
    destination: Domain,
    control: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They are not operations: to cancel one would be to lose the guest."""
    with halfway(migration, source, destination, control) as half:
        capsys.readouterr()
        assert main(["status", "2", "--host", "xen", "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["role"], row["pid"]) == ("pager", half.pager)
        (pager,) = (one for one in control_of.processes(control) if one.role is Role.PAGER)
        for ask in (Ask.CANCEL, Ask.SET, Ask.SWITCH, Ask.PAUSE_SENDING):
            with pytest.raises(OSError, match=f"a pager has no {ask.value}"):
                control_of.ask(control, pager, ask)
        os.kill(half.server, signal.SIGCONT)


def test_a_page_server_that_dies(
    machine: Machine,
    migration: Migration,
    source: Domain,
    destination: Domain,
    control: Path,
    postcopy: Command,
) -> None:
    """It is told at both ends; only who wants to lose the guest can give up the pager."""
    with halfway(migration, source, destination, control) as half:
        os.kill(half.server, signal.SIGKILL)
        wait_for(lambda: gone(half.server), "it has gone")
        code, _, complaint = postcopy("wait", "1")
        assert code == 1
        assert "page-server of domain 1 (domid 1): its process has died" in complaint
        code, (row,), _ = postcopy("status", "1")
        assert code == 1
        assert row["lost"] == "its process has died, without a word"
        row = waits_for(postcopy, lambda row: "nobody listens" in row["trouble"])
        assert row["pages_left"] > 0

        code, _, complaint = postcopy("abandon", "2")
        assert code == 1
        assert "--lose-the-guest" in complaint
        assert not gone(half.pager)
        code, told, _ = postcopy("abandon", "2", "--lose-the-guest")
        assert code == 0
        assert told["lost"] == "it was abandoned"
        wait_for(lambda: gone(half.pager), "it has gone")
        assert postcopy("abandon", "1")[0] == 0
        assert postcopy("list")[:2] == (0, [])
    # What it had open, which the kernel closes.
    machine.state.handles_open -= 4


def test_a_page_server_that_is_abandoned_tells_its_pager(
    migration: Migration, source: Domain, destination: Domain, control: Path, postcopy: Command
) -> None:
    def abandon(_fields: dict[str, Any]) -> None:
        (server,) = wait_for(lambda: control_of.processes(control), "the page server")
        control_of.ask(control, server, Ask.ABANDON)

    migration.restored = abandon
    with both_done(migration, source, destination, control):
        code, _, complaint = postcopy("wait", "2")
        assert code == 1
        assert "pages are missing" in complaint
        code, (row,), _ = postcopy("status", "1")
        assert code == 1
        assert row["lost"] == "it was abandoned"


def test_another_way(
    migration: Migration, source: Domain, destination: Domain, control: Path, postcopy: Command
) -> None:
    told: dict[str, Any] = {}

    def move(_fields: dict[str, Any]) -> None:
        wait_for(lambda: migration.traced("pages_kept"), "it keeps nobody waiting")
        pid_of(Role.PAGE_SERVER, control)
        (server,) = control_of.processes(control)
        asked = {"address": "127.0.0.3", "port": 0}
        told.update(control_of.ask(control, server, Ask.RECONNECT, **asked))
        os.kill(server.pid, signal.SIGSTOP)

    migration.restored = move
    with both_done(migration, source, destination, control) as half:
        assert told["address"] == "127.0.0.3"
        there = f"127.0.0.3:{told['port']}"
        assert postcopy("reconnect", "2", there)[:2] == (0, told)
        (row,) = postcopy("status", "2")[1]
        assert (row["address"], row["port"]) == ("127.0.0.3", told["port"])
        os.kill(half.server, signal.SIGCONT)
        assert postcopy("wait")[0] == 0
        wait_for(lambda: gone(half.pager) and gone(half.server), "both end")
        assert {pfn: destination.page(pfn) for pfn in half.expected} == half.expected


def test_a_guest_that_is_destroyed_ends_its_pager(
    migration: Migration, source: Domain, destination: Domain, control: Path, postcopy: Command
) -> None:
    with halfway(migration, source, destination, control) as half:
        (pager,) = (one for one in control_of.processes(control) if one.role is Role.PAGER)
        with socket.socket(socket.AF_UNIX) as sock:
            control_of.connect(sock, control, pager)
            answers = sock.makefile("rb")
            # The answer to the second request tells that the first has been taken.
            sock.sendall(b"".join(encode_line({"ask": ask}) for ask in (Ask.WAIT, Ask.STATUS)))
            assert decode_line(answers.readline())["pages_left"]
            destination.destroy()
            told = str(decode_line(answers.readline())["ended"])
        assert re.search("domain 2( is gone|: No such process)", told)
        wait_for(lambda: gone(half.pager), "it has gone")
        # There is nothing that a person would have to look at.
        assert [row["role"] for row in postcopy("list")[1]] == ["page-server"]


def test_another_pager_takes_the_place_of_one_that_died(
    machine: Machine,
    migration: Migration,
    source: Domain,
    destination: Domain,
    control: Path,
    postcopy: Command,
    monkeypatch: pytest.MonkeyPatch,
    restored: Guest,
    xenstored: Xenstored,
) -> None:
    for name, value in migration.environment.items():
        monkeypatch.setenv(name, value)
    with halfway(migration, source, destination, control) as half:
        assert not destination.access(ALL[-1])
        waits_for(postcopy, lambda row: row["faults"])
        code, _, complaint = postcopy("restart", "2")
        assert code == 1
        assert "it has not died" in complaint
        os.kill(half.pager, signal.SIGKILL)
        wait_for(lambda: gone(half.pager), "it has died")
        assert "has died" in postcopy("status", "2")[1][0]["lost"]
        os.kill(half.server, signal.SIGCONT)
        code, told, complaint = postcopy("restart", "2", "--events", str(migration.events))
        assert code == 0, complaint
        assert told["process"].startswith("pager-2-")
        assert destination.go_on() == 0
        assert destination.read(ALL[-1]) == half.expected[ALL[-1]]
        assert postcopy("wait")[0] == 0
        wait_for(lambda: gone(half.server), "the page server has ended")
        assert {pfn: destination.page(pfn) for pfn in half.expected} == half.expected
        assert list(control.iterdir()) == []
        # The guest may see requests to suspend again.
        assert xenstored.permissions(restored.path) == ["n2"]
    # What the first one had, which the kernel takes back.
    machine.state.handles_open -= 6
    machine.state.buffers_held -= 1
