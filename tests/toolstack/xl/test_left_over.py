"""The result, `list` and `recover` say what an operation has left, and what to do about it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.toolstack.stage import TOOLSTACK, Hosts, called
from tests.waiting import wait_for
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role

SLOWLY = ("--postcopy", "--bandwidth=16M", "--json")


def has_begun(events: Path) -> bool:
    return events.exists() and '"phase"' in events.read_text()


@pytest.fixture
def taken(hosts: Hosts, tmp_path: Path) -> str:
    """`g` has come by postcopy, and another took its name meanwhile: what the migration printed."""
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    process = hosts.start("migrate", "g", "--host", hosts.source, "--to", hosts.destination,
                          *SLOWLY, "--events", events)  # fmt: skip
    wait_for(lambda: has_begun(events), "the helper is at work")
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def test_a_guest_that_keeps_the_name_of_a_copy(hosts: Hosts, taken: str) -> None:
    there = ("--host", hosts.destination)
    (warning,) = (text for text in json.loads(taken)["warnings"] if "'g--incoming'" in text)
    assert "`xen-toolstack rename g--incoming NEW`" in warning
    rows = {row["name"]: row for row in called("list", *there, "--json").json}
    assert rows["g--incoming"]["waits"] == (
        "`recover g` (it was received and started; its name is 'g')"
    )
    assert rows["g"]["waits"] is None
    moved = called("migrate", "g--incoming", *there, "--to", hosts.source)
    assert moved.code == 1
    assert "`xen-toolstack recover g` first" in moved.line
    refused = called("recover", "g--incoming", *there)
    assert refused.code == 1
    assert "there is another guest 'g'" in refused.line
    assert called("rename", "g", "other", *there).code == 0
    assert called("recover", "g", *there).code == 0
    assert hosts.states(hosts.at_destination) == {"other": "running", "g": "running"}
    assert hosts.journals() == []


def test_it_may_have_another_name(hosts: Hosts, taken: str) -> None:
    assert taken
    there = ("--host", hosts.destination)
    renamed = called("rename", "g--incoming", "g2", *there)
    assert (renamed.code, renamed.out) == (0, "g--incoming is now called g2\n")
    assert hosts.journals() == []
    assert called("migrate", "g2", *there, "--to", hosts.source).code == 0
    assert called("migrate", "g", *there, "--to", hosts.source).code == 0


def test_over_a_command_the_receiver_tells(hosts: Hosts, tmp_path: Path) -> None:
    """The sender cannot know of it but from what the receiver says."""
    hosts.guest(megabytes=32)
    events = tmp_path / "events"
    receiver = f"exec {' '.join(TOOLSTACK)} receive --host {hosts.destination}"
    process = hosts.start("migrate", "g", "--host", hosts.source, "--to", receiver,
                          *SLOWLY, "--events", events)  # fmt: skip
    wait_for(lambda: has_begun(events), "the helper is at work")
    hosts.at_destination.create_guest("g", 2 << 20, "idle")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (out + err).count("the guest runs here as 'g--incoming'") == 1


def dead(host: SimulatedHost, role: Role, promise: Promise, **of: object) -> None:
    """The journal of a process that has ended."""
    pid = os.fork()
    if not pid:
        entry: dict[str, object] = {"domid": None, "domain_name": "g", "peer": "/there", **of}
        Journal.begin(host.state_dir, "g", role, **entry).promise(promise)
        os._exit(0)
    os.waitpid(pid, 0)


def test_list_shows_what_is_left_of_a_guest_that_is_gone(hosts: Hosts) -> None:
    dead(hosts.at_source, Role.SOURCE, Promise.DONE, domid=77)
    here = ("--host", hosts.source)
    (row,) = called("list", *here, "--json").json
    assert (row["name"], row["domid"], row["state"]) == ("g", None, "gone")
    assert "`recover g`" in row["waits"]
    assert "`recover g`" in called("list", *here).out
    assert called("recover", "g", *here).code == 0
    assert called("list", *here, "--json").json == []


def test_list_says_what_ended_well_as_that(hosts: Hosts) -> None:
    domid = hosts.guest()
    dead(hosts.at_source, Role.SAVE, Promise.DONE, domid=domid, peer="/images/g")
    (row,) = called("list", "--host", hosts.source, "--json").json
    assert row["waits"] == "`recover g` (it is whole in /images/g; what is left here goes)"


@pytest.mark.parametrize("new", ["17", ""])
def test_what_is_no_name(hosts: Hosts, new: str) -> None:
    hosts.guest()
    assert called("rename", "g", new, "--host", hosts.source).code in {1, 2}
    assert hosts.states(hosts.at_source) == {"g": "running"}


def test_a_guest_in_the_middle_is_not_renamed(hosts: Hosts) -> None:
    domid = hosts.guest()
    dead(hosts.at_source, Role.SOURCE, Promise.BEGUN, domid=domid)
    refused = called("rename", "g", "h", "--host", hosts.source)
    assert refused.code == 1
    assert "`recover g`" in refused.line
