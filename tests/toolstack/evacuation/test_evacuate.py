"""Evacuations of real guests between simulated hosts, by the command."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests import trace_lines
from tests.conftest import CalmHost, HostFactory
from tests.toolstack.stage import TOOLSTACK, Hosts, called, wait_for
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.toolstack.evacuation import record

pytestmark = pytest.mark.usefixtures("no_leaks")

BANDWIDTH = "--bandwidth=8M"
SLOW = 1 / 32
"""The weight of a guest that would be on its way for half a minute."""


def guests(hosts: Hosts, number: int, megabytes: int = 4) -> list[str]:
    names = [f"g{index}" for index in range(number)]
    for name in names:
        hosts.guest(name, megabytes=megabytes)
    return names


def all_run(host: CalmHost, names: list[str]) -> None:
    """Exactly these are there; each runs, with every page right."""
    rows = {row.name: row for row in host.domains()}
    assert sorted(rows) == sorted(names)
    for row in rows.values():
        report = host.verify(row.domid, 30)
        assert report.memory_ok, report.crash
        assert row.state.value == "running"


def fates(result: Any) -> dict[str, str]:
    return {guest["name"]: guest["fate"] for guest in result["guests"]}


def begun(events: Path, kind: str, **fields: object) -> list[dict[str, Any]]:
    return [
        event
        for event in trace_lines.read(events)
        if event["event"] == kind and fields.items() <= event.items()
    ]


def helpers(events: Path) -> dict[str, int]:
    """The pids of the source's helpers, by guest."""
    started = begun(events, "helper_started", process="controller")
    return {event["guest"]: event["helper"] for event in started}


def under_way(events: Path, name: str) -> int:
    """Wait until the guest's first round of precopy has begun; returns its helper's pid."""
    asked = {"process": "controller", "guest": name, "name": "precopy_policy"}
    wait_for(lambda: begun(events, "callback", **asked), f"{name} is on its way")
    return helpers(events)[name]


def ended(process: subprocess.Popen[str]) -> tuple[int, Any, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, json.loads(out), err


def test_a_host_is_evacuated_to_two(hosts: Hosts, host_factory: HostFactory) -> None:
    """Eight guests, four at once, and no destination gets more than it has room for."""
    names = guests(hosts, 8)
    third = host_factory("third")
    third.bound_memory(12 << 20)
    done = called(
        *("evacuate", "--host", hosts.source, "--json"),
        *("--to", hosts.destination, "--to", third.directory),
    )
    assert (done.code, done.err) == (0, "")
    assert done.json["moved"] == done.json["of"] == 8
    assert hosts.states(hosts.at_source) == {}
    by_place = Counter(guest["destination"] for guest in done.json["guests"])
    assert by_place == {str(hosts.destination): 5, str(third.directory): 3}
    at_third = sorted(row.name for row in third.domains())
    all_run(third, at_third)
    all_run(hosts.at_destination, sorted(set(names) - set(at_third)))
    assert hosts.journals() == []


def test_what_one_leaves_the_others_get(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest("large", megabytes=12)
    hosts.guest("small", megabytes=2)
    events = tmp_path / "events"
    process = hosts.start(
        *("evacuate", "--host", hosts.source, "--to", hosts.destination, "--json"),
        *("--order", "large,small", "--bandwidth", "4M", "--events", events),
    )
    code, _result, err = ended(process)
    assert code == 0, err
    told = begun(events, "control", guest="large", ask="set")
    assert [event["fields"]["bandwidth"] for event in told] == [2 << 20, 4 << 20]


def test_a_dry_run_shows_the_plan_and_moves_nothing(hosts: Hosts) -> None:
    guests(hosts, 2)
    hosts.guest("large", megabytes=8)
    hosts.at_source.pause(hosts.at_source.find("g1"))
    for name, there in (("taken", "taken"), ("half", "half--incoming")):
        hosts.guest(name, megabytes=1)
        hosts.at_destination.create_guest(there, 1 << 20, "idle")
    hosts.at_destination.bound_memory(11 << 20)
    command = ("evacuate", "--host", hosts.source, "--to", hosts.destination, "--dry-run")
    done = called(*command, "--json")
    assert (done.code, done.err) == (1, "")
    plan = done.json
    assert [move["name"] for move in plan["moves"]] == ["large"]
    reasons = {stay["name"]: stay["reason"] for stay in plan["stays"]}
    assert reasons["g0"] == f"{hosts.destination}: no room for 4 MiB: 1 MiB are left"
    assert "'g1' is paused" in reasons["g1"]
    assert reasons["taken"] == f"{hosts.destination}: there is another guest 'taken'"
    assert reasons["half"] == f"{hosts.destination}: there is a guest 'half--incoming'"
    (place,) = plan["destinations"]
    assert (place["free"], place["takes"], place["left"]) == (9 << 20, 8 << 20, 1 << 20)
    shown = called(*command, "--bandwidth", "1M")
    assert shown.code == 1
    assert re.search(r"large +8 MiB +\S+ +9\.\d\d s", shown.out), shown.out
    assert "g0 cannot move: " in shown.out
    assert hosts.states(hosts.at_destination).keys() == {"taken", "half--incoming"}


def test_a_guest_whose_helper_is_killed_stays_and_the_others_go(
    hosts: Hosts, tmp_path: Path
) -> None:
    guests(hosts, 3)
    events = tmp_path / "events"
    process = hosts.start(
        *("evacuate", "--host", hosts.source, "--to", hosts.destination, "--json"),
        *(BANDWIDTH, "--weight", f"g1={SLOW}", "--weight", "g2=2", "--events", events),
    )
    os.kill(under_way(events, "g1"), signal.SIGKILL)
    code, result, err = ended(process)
    assert (code, result["exit_code"]) == (1, 1)
    assert fates(result) == {"g0": "moved", "g1": "stays", "g2": "moved"}
    assert re.fullmatch(
        r"xen-toolstack: g1: stays: .*killed by signal 9.*the guest runs on at the source\n", err
    )
    all_run(hosts.at_source, ["g1"])
    all_run(hosts.at_destination, ["g0", "g2"])
    assert hosts.journals() == []
    shares = {
        event["pid"]: event["bandwidth"]
        for event in begun(events, "start", process="helper", operation="save")
    }
    # The first has its part although the others have not begun yet.
    whole, weights = 8 << 20, {"g0": 1, "g1": SLOW, "g2": 2}
    pids = helpers(events)
    for name, weight in weights.items():
        assert shares[pids[name]] == pytest.approx(whole * weight / sum(weights.values()), abs=4)


def test_a_guest_whose_receiver_is_killed_stays_and_the_others_go(
    hosts: Hosts, tmp_path: Path
) -> None:
    guests(hosts, 2)
    hosts.guest("g2", megabytes=32)
    events = tmp_path / "events"
    process = hosts.start(
        *("evacuate", "--host", hosts.source, "--to", hosts.destination, "--json"),
        *(BANDWIDTH, "--weight", f"g2={SLOW}", "--events", events),
    )
    there = {"process": "receiver", "guest": "g2"}
    (started,) = wait_for(lambda: begun(events, "helper_started", **there), "it has come there")
    os.kill(started["pid"], signal.SIGKILL)
    code, result, err = ended(process)
    assert code == 1
    assert fates(result) == {"g0": "moved", "g1": "moved", "g2": "stays"}
    assert err.startswith("xen-toolstack: g2: stays: ")
    all_run(hosts.at_source, ["g2"])
    all_run(hosts.at_destination, ["g0", "g1"])
    assert hosts.journals() == []


def test_an_interrupted_evacuation_says_what_is_where_and_goes_on(
    hosts: Hosts, tmp_path: Path
) -> None:
    names = guests(hosts, 4)
    events = tmp_path / "events"
    command = ("evacuate", "--host", hosts.source, "--to", hosts.destination, "--json", *names)
    process = hosts.start(
        *(*command, "--jobs", 2, "--events", events),
        *(BANDWIDTH, "--weight", f"g3={SLOW}", "--order", "g3"),
    )
    wait_for(lambda: begun(events, "migrated", outcome="success"), "the first has moved")
    process.send_signal(signal.SIGINT)
    code, result, err = ended(process)
    assert code == 1
    assert result["interrupted"]
    moved = [name for name, fate in fates(result).items() if fate == "moved"]
    here = [name for name in names if name not in moved]
    assert fates(result)["g3"] == "stays"
    assert set(fates(result).values()) <= {"moved", "stays", "not begun"}
    all_run(hosts.at_destination, moved)
    all_run(hosts.at_source, here)
    assert moved
    assert here
    assert err.splitlines()[-1] == (
        f"xen-toolstack: interrupted with {len(here)} not moved; the same command goes on with them"
    )
    again = called(*command)
    assert (again.code, again.err) == (0, "")
    assert fates(again.json) == {
        **dict.fromkeys(here, "moved"), **dict.fromkeys(moved, "moved before")
    }  # fmt: skip
    all_run(hosts.at_destination, names)
    assert hosts.journals() == []


def test_a_guest_that_one_destination_refuses_tries_another(
    hosts: Hosts, host_factory: HostFactory
) -> None:
    """Nothing is known of a host behind a command before its receiver answers."""
    hosts.guest("g", megabytes=4)
    full = host_factory("full")
    full.bound_memory(2 << 20)
    receiver = " ".join([*TOOLSTACK, "receive", "--host", str(full.directory)])
    done = called(
        *("evacuate", "--host", hosts.source, "--json"),
        *("--to", receiver, "--to", hosts.destination),
    )
    assert done.code == 0, done.err
    (guest,) = done.json["guests"]
    (refusal,) = guest["tried"]
    assert refusal["destination"] == receiver
    assert "no room for 4 MiB" in refusal["reason"]
    assert guest["destination"] == str(hosts.destination)
    all_run(hosts.at_destination, ["g"])


def test_if_no_destination_can_be_reached_each_is_told_of(hosts: Hosts) -> None:
    hosts.guest("g", megabytes=2)
    commands = ["echo no route >&2; exit 255", "false"]
    done = called(
        *("evacuate", "--host", hosts.source), *(f"--to={command}" for command in commands)
    )
    assert done.code == 1
    lines = [line for line in done.err.splitlines() if ": stays: " in line]
    assert len(lines) == 1
    assert re.search(r"exit 255: .*no route.*; false: .*runs on at the source", lines[0]), lines
    assert "not evacuated: 0 of 1 guests moved" in done.out
    all_run(hosts.at_source, ["g"])


def test_stop_on_failure_begins_with_no_other(hosts: Hosts) -> None:
    names = guests(hosts, 3, megabytes=2)
    done = called(
        *("evacuate", "--host", hosts.source, "--json", "--to", "false"),
        *("--jobs", 1, "--stop-on-failure", "--order", "g1"),
    )
    assert done.code == 1
    assert fates(done.json) == {"g0": "not begun", "g1": "stays", "g2": "not begun"}
    all_run(hosts.at_source, names)


def test_postcopy_passes_through(hosts: Hosts) -> None:
    guests(hosts, 2)
    done = called(
        *("evacuate", "--host", hosts.source, "--json", "--to", hosts.destination),
        *("--postcopy", "--max-rounds", 1),
    )
    assert done.code == 0, done.err
    assert [guest["migration"]["postcopy_transitioned"] for guest in done.json["guests"]] == [
        "done"
    ] * 2
    all_run(hosts.at_destination, ["g0", "g1"])


def test_a_guest_that_dies_sets_the_exit_code(hosts: Hosts, tmp_path: Path) -> None:
    guests(hosts, 2)
    events = tmp_path / "events"
    process = hosts.start(
        *("evacuate", "--host", hosts.source, "--to", hosts.destination, "--json"),
        *(BANDWIDTH, "--weight", f"g0={4 * SLOW}", "--events", events),
    )
    under_way(events, "g0")
    pid = next(row.pid for row in hosts.at_source.domains() if row.name == "g0")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    code, result, _err = ended(process)
    assert code == 5
    assert fates(result) == {"g0": "died", "g1": "moved"}
    all_run(hosts.at_destination, ["g1"])


def test_lines_say_who_begins_and_who_has_moved(hosts: Hosts) -> None:
    hosts.guest("g", megabytes=2)
    there = hosts.destination
    done = called("evacuate", "--host", hosts.source, "--to", there)
    assert done.code == 0
    begins, moved = done.err.splitlines()
    assert begins == f"xen-toolstack: g: on its way to {there}"
    assert re.fullmatch(rf"xen-toolstack: g: moved to {there} in \d+\.\d s \(1 of 1\)", moved)
    headline, titles, row = done.out.splitlines()
    assert re.match(r"evacuated: 1 of 1 guests moved in \S+ m?s", headline)
    assert re.fullmatch(r"Guest +Memory +What +Where +Took +Stood still +Sent", titles)
    assert row.split()[:5] == ["g", "2", "MiB", "moved", str(there)]


def test_a_terminal_shows_a_table_while_it_lasts(hosts: Hosts) -> None:
    hosts.guest("g", megabytes=2)
    ours, terminal = pty.openpty()
    command = [*TOOLSTACK, "evacuate", "--host", hosts.source, "--to", hosts.destination]
    with subprocess.Popen(
        [*command, "--bandwidth", "1M"],  # so that it is seen in a round
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(terminal)
        shown = b""
        # A terminal ends with EIO.
        with open(ours, "rb", buffering=0) as screen, contextlib.suppress(OSError):
            while data := screen.read(4096):
                shown += data
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert "0 of 1 moved, 1 on their way" in text
    assert "round 1 " in text
    assert out.startswith(b"evacuated: 1 of 1 guests moved in ")


class TestRefused:
    """A command line that is wrong moves nothing."""

    @pytest.mark.parametrize(
        ("more", "code", "text"),
        [
            (["nobody"], 1, "there is no guest 'nobody'; guests on this host: g"),
            (["--order", "x"], 2, "--order: 'x' is not to move; guests to move: g"),
            (["--bandwidth=9M", "--weight", "x=2"], 2, "--weight: 'x' is not to move"),
            (["--weight", "g=2"], 2, "--weight shares out a bandwidth: give --bandwidth as well"),
            (["--weight", "g=0"], 2, "invalid weight 'g=0'"),
            (["--weight", "2"], 2, "invalid weight '2'"),
            (["--jobs", "0"], 2, "invalid number '0'"),
            (["--postcopy", "--paused"], 2, "postcopy excludes paused"),
            (["--postcopy", "--link=127.0.0.1:99"], 2, "--link with a PORT is for one at a time"),
        ],
    )
    def test_options(self, unharmed: Hosts, more: list[str], code: int, text: str) -> None:
        done = called("evacuate", "--host", unharmed.source, "--to", unharmed.destination, *more)
        assert done.code == code
        assert text in done.err
        assert len(done.err.splitlines()) == 1

    def test_destinations(self, unharmed: Hosts) -> None:
        here = unharmed.source
        done = called("evacuate", "--host", here, "--to", here)
        assert done.line.endswith("that is the host that is to be evacuated")
        twice = ("--to", unharmed.destination) * 2
        done = called("evacuate", "--host", here, *twice)
        assert (done.code, "named twice" in done.line) == (2, True)
        done = called("evacuate", "--host", here, "--to", "/nowhere/at/all")
        assert "neither a host's directory nor a command" in done.line

    def test_a_host_without_guests_is_evacuated(self, tmp_path: Path) -> None:
        for name in ("empty", "there"):
            create_host(tmp_path / name)
        done = called("evacuate", "--host", tmp_path / "empty", "--to", tmp_path / "there")
        assert (done.code, done.out, done.err) == (0, "no guests to move\n", "")


def test_the_record_keeps_the_last_move_of_each_guest(tmp_path: Path) -> None:
    assert record.moved(tmp_path) == {}
    record.add(tmp_path, "web", "/a")
    record.add(tmp_path, "db", "ssh b")
    with open(tmp_path / record.FILE, "ab") as file:
        file.write(b'not ours\n["nor this"]\n')
    record.add(tmp_path, "web", "/c")
    assert record.moved(tmp_path) == {"web": "/c", "db": "ssh b"}
