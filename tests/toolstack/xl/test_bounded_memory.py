"""A host with bounded memory refuses a guest without room before any of it has come."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.toolstack.stage import Ended, Hosts, called
from tests.waiting import wait_for
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost


def create(directory: Path, name: str, memory: str = "8M") -> Ended:
    made = ("create", name, "--memory", memory, "--workload", "idle", "--host", directory)
    return called(*made)


@pytest.fixture
def small(hosts: Hosts) -> Path:
    """A destination of 20 MiB."""
    assert called("init", hosts.destination, "--memory", "20M").code == 0
    return hosts.destination


def test_what_it_is_made_with(tmp_path: Path) -> None:
    made = called("init", tmp_path / "host", "--memory", "1G", "--json")
    assert made.json == {"host": str(tmp_path / "host"), "memory": 1 << 30}
    again = called("init", tmp_path / "host", "--json")
    assert again.json == made.json
    assert called("init", tmp_path / "host", "--memory", "much").code == 2


def test_a_guest_without_room_is_not_made(small: Path) -> None:
    assert create(small, "a").code == 0
    assert create(small, "b").code == 0
    refused = create(small, "c")
    assert refused.code == 1
    assert refused.line == (
        f"xen-toolstack: no room for 8 MiB: of 20 MiB there are 4 MiB free on {small}"
    )
    # What a guest had is free once it has ended, and not before.
    host = SimulatedHost(small)
    pid = next(row.pid for row in host.domains() if row.name == "a")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Hosts.states(host)["a"] == "crashed", "it has crashed")
    assert create(small, "c").code == 1
    assert called("destroy", "a", "--host", small).code == 0
    assert create(small, "c").code == 0


def test_a_migration_without_room_is_refused_before_anything_is_sent(
    hosts: Hosts, small: Path
) -> None:
    hosts.guest("g")
    assert create(small, "a", "16M").code == 0
    arguments = ("migrate", "g", "--host", hosts.source, "--to", small)
    for more in ((), ("--postcopy",)):
        ended = called(*arguments, *more, "--json")
        assert ended.code == 1
        assert ended.json["bytes_sent"] == 0
        assert "of 20 MiB there are 4 MiB free" in ended.json["reason"]
        assert hosts.states(hosts.at_source) == {"g": "running"}
        assert hosts.states(hosts.at_destination) == {"a": "running"}
        assert hosts.journals() == []
    assert called("destroy", "a", "--host", small).code == 0
    assert called(*arguments).code == 0
    # The place that it has left is free again.
    assert called("init", hosts.source, "--memory", "8M").code == 0
    assert create(hosts.source, "b").code == 0


def test_of_restores_at_once_as_many_come_as_have_room(
    hosts: Hosts, small: Path, tmp_path: Path
) -> None:
    names = ["g0", "g1", "g2", "g3"]
    for name in names:
        hosts.guest(name)
        saved = called("save", name, tmp_path / name, "--host", hosts.source)
        assert saved.code == 0, saved
    running = [hosts.start("restore", tmp_path / name, "--host", small) for name in names]
    ends = [process.communicate(timeout=60) for process in running]
    codes = sorted(process.returncode for process in running)
    assert codes == [0, 0, 1, 1], ends
    for process, (_, err) in zip(running, ends, strict=True):
        assert process.returncode == 0 or "4 MiB free" in err
    assert sorted(hosts.states(hosts.at_destination).values()) == ["running", "running"]
    assert hosts.journals() == []


def test_of_migrations_at_once_as_many_come_as_have_room(hosts: Hosts, small: Path) -> None:
    names = ["g0", "g1", "g2"]
    for name in names:
        hosts.guest(name)
    running = [
        hosts.start("migrate", name, "--host", hosts.source, "--to", small, "--json")
        for name in names
    ]
    ends = [process.communicate(timeout=60) for process in running]
    codes = sorted(process.returncode for process in running)
    assert codes == [0, 0, 1], ends
    (refused,) = (
        json.loads(out)
        for process, (out, _) in zip(running, ends, strict=True)
        if process.returncode
    )
    assert "4 MiB free" in refused["reason"]
    assert list(hosts.states(hosts.at_source).values()) == ["running"]
    assert sorted(hosts.states(hosts.at_destination).values()) == ["running", "running"]
    assert hosts.journals() == []


def test_a_bound_is_not_set_below_what_is_used(hosts: Hosts) -> None:
    hosts.guest("g")
    refused = called("init", hosts.source, "--memory", "4M")
    assert refused.code == 1
    assert "have 8 MiB, more than 4 MiB" in refused.line
    assert create(hosts.source, "h", "64M").code == 0
