"""A guest that cannot suspend is refused at once, with its state. What happens to one on the way is
reported as what it is, and a guest that an operation needs to run is not paused."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.toolstack.stage import Ended, Hosts, called
from tests.toolstack.two_hosts import Side, run
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.layout import Behaviour
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import Role
from xen_save_helper.toolstack.xl.recover import waits_for

AT_ONCE = 10.0
"""Seconds, on a busy machine; the limit of a suspension is 60."""


def migrate(hosts: Hosts, name: object = "g", *more: object) -> Ended:
    return called("migrate", name, "--host", hosts.source, "--to", hosts.destination, *more)


def save(hosts: Hosts, file: Path, *more: object) -> Ended:
    return called("save", "g", file, "--host", hosts.source, *more)


def kill(host: SimulatedHost, name: str = "g") -> None:
    pid = next(row.pid for row in host.domains() if row.name == name)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Hosts.states(host)[name] == "crashed", "it has crashed")


@pytest.mark.parametrize("more", [(), ("-c",), ("-p",)])
def test_a_paused_guest_is_not_saved(hosts: Hosts, tmp_path: Path, more: tuple[str, ...]) -> None:
    hosts.guest()
    called("pause", "g", "--host", hosts.source)
    file = tmp_path / "image"
    ended = save(hosts, file, *more)
    assert (ended.code, ended.out) == (1, "")
    assert ended.line == "xen-toolstack: 'g' is paused, and cannot suspend: unpause it first"
    assert hosts.states(hosts.at_source) == {"g": "paused"}
    assert not file.exists()
    assert hosts.journals() == []


def test_a_paused_guest_is_not_migrated(hosts: Hosts) -> None:
    domid = hosts.guest()
    called("pause", "g", "--host", hosts.source)
    started = time.monotonic()
    ended = migrate(hosts)
    assert time.monotonic() - started < AT_ONCE
    assert ended.code == 1
    assert "is paused" in ended.line
    assert hosts.states(hosts.at_source) == {"g": "paused"}
    assert hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []
    assert called("unpause", domid, "--host", hosts.source).code == 0
    assert migrate(hosts).code == 0


@pytest.mark.parametrize("command", ["save", "migrate"])
def test_a_guest_that_has_crashed_is_told_as_that(
    hosts: Hosts, tmp_path: Path, command: str
) -> None:
    hosts.guest()
    kill(hosts.at_source)
    ended = migrate(hosts) if command == "migrate" else save(hosts, tmp_path / "image")
    assert ended.code == (5 if command == "migrate" else 1)
    assert "'g' has crashed" in ended.line
    assert hosts.journals() == []
    assert hosts.states(hosts.at_destination) == {}
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == []


@pytest.mark.parametrize("command", ["pause", "unpause"])
def test_a_guest_that_has_crashed_is_not_paused(hosts: Hosts, command: str) -> None:
    hosts.guest()
    kill(hosts.at_source)
    ended = called(command, "g", "--host", hosts.source)
    assert ended.code == 1
    assert ended.line == "xen-toolstack: 'g' has crashed: examine it, then destroy it"


def test_the_library_refuses_a_paused_guest_before_any_page(hosts: Hosts, tmp_path: Path) -> None:
    domid = hosts.guest()
    hosts.at_source.pause(domid)
    side = Side(hosts.at_source)
    with (tmp_path / "stream").open("wb") as stream, open(os.devnull, "rb") as back:
        saved = run(domain_live_migrate(side.ctx, domid, stream.fileno(), 0, back.fileno()))
        assert stream.tell() == 0
    assert saved.rc
    assert "'g' is paused" in saved.reason


def started(hosts: Hosts, events: Path, *more: object) -> tuple[object, ...]:
    return ("migrate", "g", "--host", hosts.source, "--to", hosts.destination, "--json",
            "--events", events, *more)  # fmt: skip


SLOW_POSTCOPY = ("--postcopy", "--max-rounds=0", "--bandwidth=4M")


def has(events: Path, event: str) -> bool:
    return events.exists() and any(
        f'"event": "{event}"' in line or f'"event":"{event}"' in line
        for line in events.read_text().splitlines()
    )


def test_a_guest_that_migrates_is_not_paused(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, "--bandwidth=16M"))
    wait_for(lambda: has(events, "phase"), "the helper is at work")
    refused = called("pause", "g", "--host", hosts.source)
    assert refused.code == 1
    assert "cannot be paused: it waits for its migration to end (process " in refused.line
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert json.loads(out)["outcome"] == "success"


def test_a_guest_that_is_paused_on_the_way_is_told_as_that(hosts: Hosts, tmp_path: Path) -> None:
    """By another toolstack, which asks no journal."""
    domid = hosts.guest(megabytes=16)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, "--bandwidth=8M"))
    wait_for(lambda: has(events, "phase"), "the helper is at work")
    hosts.at_source.pause(domid)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 1
    result = json.loads(out)
    assert "the guest is paused" in result["reason"]
    assert "acknowledge" not in result["reason"]
    assert result["guest"]["state"] == "paused"
    assert hosts.states(hosts.at_source) == {"g": "paused"}
    assert called("unpause", "g", "--host", hosts.source).code == 0


def test_a_guest_that_is_paused_when_it_was_asked_goes_on_by_unpause(
    hosts: Hosts, tmp_path: Path
) -> None:
    """`unpause` of a paused guest is never refused, an operation under way or not."""
    domid = hosts.guest(megabytes=16)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, "--bandwidth=8M"))
    wait_for(lambda: has(events, "phase"), "the helper is at work")
    hosts.at_source.pause(domid)
    assert called("unpause", "g", "--host", hosts.source).code == 0
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_a_guest_that_dies_of_its_suspension_is_told_once(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(behaviour=Behaviour.DIE)
    file = tmp_path / "image"
    ended = save(hosts, file)
    assert ended.code == 1
    assert ended.line == f"xen-toolstack: cannot save 'g' to {file}: the guest has crashed"
    assert called("destroy", "g", "--host", hosts.source).code == 0
    hosts.guest(behaviour=Behaviour.DIE)
    ended = migrate(hosts)
    assert (ended.code, ended.line) == (5, "xen-toolstack: the guest has crashed")


def test_a_guest_that_dies_on_the_way_is_told_as_that(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=16)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, "--bandwidth=8M"))
    wait_for(lambda: has(events, "phase"), "the helper is at work")
    kill(hosts.at_source)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    result = json.loads(out)
    assert "crashed" in result["reason"]
    assert hosts.journals() == []


def test_a_guest_that_is_destroyed_on_the_way_is_told_as_that(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest(megabytes=16)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, "--bandwidth=8M"))
    wait_for(lambda: has(events, "phase"), "the helper is at work")
    assert called("destroy", "g", "--host", hosts.source).code == 0
    out, err = process.communicate(timeout=60)
    assert process.returncode == 5, err
    assert "destroyed" in json.loads(out)["reason"]
    assert hosts.states(hosts.at_source) == hosts.states(hosts.at_destination) == {}
    assert hosts.journals() == []


@pytest.mark.parametrize("how", ["destroyed", "crashed"])
def test_a_guest_that_ends_at_the_destination(hosts: Hosts, tmp_path: Path, how: str) -> None:
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, *SLOW_POSTCOPY))
    wait_for(lambda: has(events, "postcopy_resume_done"), "it runs there")
    if how == "destroyed":
        hosts.at_destination.destroy(hosts.at_destination.find("g--incoming"))
    else:
        pid = next(row.pid for row in hosts.at_destination.domains())
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    ended = {"destroyed": "was destroyed", "crashed": "has crashed"}[how]
    assert json.loads(out)["reason"] == (f"destination: the guest {ended} while being restored")


def test_a_suspended_guest_that_is_destroyed_at_the_source(hosts: Hosts, tmp_path: Path) -> None:
    """It runs at the destination; nothing is left to be said or done."""
    domid = hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(*started(hosts, events, *SLOW_POSTCOPY))
    wait_for(lambda: has(events, "postcopy_resume_done"), "it runs there")
    (entry,) = journal.entries(hosts.source)
    assert waits_for(entry) == f"its migration to end (process {process.pid}, transition)"
    hosts.at_source.destroy(domid)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    result = json.loads(out)
    assert (result["reason"], result["warnings"]) == ("", [])
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    assert hosts.journals() == []


def test_digits_are_a_domid(hosts: Hosts, tmp_path: Path) -> None:
    domid = hosts.guest()
    for command, state in (("pause", "paused"), ("unpause", "running")):
        ended = called(command, domid, "--host", hosts.source, "--json")
        assert ended.json == {"name": "g", "state": state}
    file = tmp_path / "image"
    assert called("save", domid, file, "-c", "--host", hosts.source).code == 0
    assert file.exists()
    ended = called("recover", domid, "--host", hosts.source)
    assert (ended.code, ended.out) == (0, "nothing is left to recover for 'g'\n")
    assert migrate(hosts, domid).code == 0
    missing = migrate(hosts, domid)
    assert missing.code == 1
    assert f"there is no domain {domid}; guests on this host" in missing.line
    there = hosts.at_destination.find("g")
    assert called("destroy", there, "--host", hosts.destination).code == 0
    refused = called("create", "17", "--memory", "8M", "--host", hosts.source)
    assert refused.code == 2
    assert "domid" in refused.line


@pytest.mark.parametrize("suffix", ["--incoming", "--migratedaway", "--postcopy-inconsistent"])
def test_a_name_says_nothing(hosts: Hosts, tmp_path: Path, suffix: str) -> None:
    """A person may name a guest as a migration names its own."""
    name = f"web{suffix}"
    hosts.guest(name)
    hosts.guest("web")
    recovered = called("recover", name, "--host", hosts.source)
    assert recovered.out == f"nothing is left to recover for {name!r}\n"
    ended = migrate(hosts, name, "--json")
    assert ended.code == 0, ended
    assert hosts.states(hosts.at_destination) == {name: "running"}
    file = tmp_path / "image"
    saved = called("save", name, file, "--host", hosts.destination)
    assert saved.code == 0, saved
    restored = called("restore", file, "--host", hosts.source, "--json")
    assert restored.json["name"] == name
    assert hosts.states(hosts.at_source) == {"web": "running", name: "running"}
    assert hosts.journals() == []


def test_recover_leaves_a_guest_alone_that_has_the_name_of_a_lost_copy(hosts: Hosts) -> None:
    """The receiver died before it had made its copy; then a person used the copy's name."""
    host = hosts.at_destination
    pid = os.fork()
    if not pid:
        journal.Journal.begin(
            host.state_dir, "web", Role.DESTINATION, domid=None, domain_name="web--incoming",
            peer="/there", uuid="11111111-2222-3333-4444-555555555555",
        )  # fmt: skip
        os._exit(0)
    os.waitpid(pid, 0)
    host.create_guest("web--incoming", 4 << 20, "idle")
    (row,) = called("list", "--host", hosts.destination, "--json").json[:1]
    assert (row["name"], row["waits"]) == ("web--incoming", None)
    recovered = called("recover", "web", "--host", hosts.destination)
    assert recovered.code == 0
    assert hosts.states(host) == {"web--incoming": "running"}
    assert hosts.journals() == []
