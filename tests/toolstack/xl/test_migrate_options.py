"""Options of `migrate` that users of xl, libvirt and QEMU look for; each one has an effect."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called, toolstack
from tests.waiting import wait_for

SLOWLY = "--bandwidth=16M"
"""So a guest of 8 MiB has time to write in each round, on a busy machine, too."""


def migrate(hosts: Hosts, *more: object, to: object = None) -> Ended:
    return called("migrate", "g", "--host", hosts.source, "--to", to or hosts.destination,
                  "--json", *more)  # fmt: skip


def guest(hosts: Hosts, megabytes: int, workload: str = "write-heavy") -> int:
    return hosts.at_source.create_guest("g", megabytes << 20, workload)


def remarks(ended: Ended) -> list[str]:
    """The warnings, but for that of a long downtime, which a busy machine brings."""
    return [text for text in ended.json["warnings"] if "stood still" not in text]


def traced(events: Path, name: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    return [row for row in rows if row["event"] == name]


def policy(events: Path) -> list[dict[str, Any]]:
    """What the controller decided of precopy, round by round."""
    return [row for row in traced(events, "precopy_policy") if row["process"] == "controller"]


def test_precopy_ends_once_what_is_left_takes_no_longer(hosts: Hosts, tmp_path: Path) -> None:
    guest(hosts, 8)
    events = tmp_path / "events"
    ended = migrate(hosts, SLOWLY, "--max-rounds=30", "--dirty-threshold=0",
                    "--max-downtime=60000", "--events", events)  # fmt: skip
    assert ended.code == 0, ended
    last = policy(events)[-1]
    assert last["answer"] == "STOP_AND_COPY"
    assert last["iteration"] == 1
    assert last["why"].endswith("at most 60000 wanted")


def test_a_postcopy_spends_the_downtime_on_hot_pages(hosts: Hosts, tmp_path: Path) -> None:
    guest(hosts, 8)
    events = tmp_path / "events"
    ended = migrate(hosts, SLOWLY, "--postcopy", "--max-rounds=2",
                    "--dirty-threshold=0", "--max-downtime=1", "--events", events)  # fmt: skip
    assert ended.code == 0, ended
    assert ended.json["postcopy"]["pages"]
    (told,) = traced(events, "hot_pages")
    assert told["max_downtime_ms"] == 1
    assert told["hot"] > told["sent"] > 0
    assert told["sent"] == told["room"]


def test_a_migration_that_does_not_converge_is_given_up(hosts: Hosts) -> None:
    guest(hosts, 8)
    ended = migrate(hosts, SLOWLY, "--abort-after=2", "--dirty-threshold=0", "--max-downtime=0")
    assert ended.code == 1
    assert ended.json["outcome"] == "running-at-source"
    assert "precopy does not converge" in ended.json["reason"]
    assert "after 2 rounds" in ended.json["reason"]
    assert hosts.states(hosts.at_source) == {"g": "running"}
    assert hosts.states(hosts.at_destination) == {}
    report = hosts.at_source.verify(hosts.at_source.find("g"), 30)
    assert report.memory_ok
    assert not hosts.at_source.domains()[0].log_dirty
    assert hosts.journals() == []


@pytest.mark.parametrize("over_a_command", [False, True])
def test_it_stays_paused(hosts: Hosts, over_a_command: bool) -> None:
    hosts.guest()
    receiver = f"exec {' '.join(TOOLSTACK)} receive --host {hosts.destination}"
    ended = migrate(hosts, "-p", to=receiver if over_a_command else None)
    assert ended.code == 0, ended
    assert hosts.states(hosts.at_source) == {}
    assert hosts.states(hosts.at_destination) == {"g": "paused"}
    assert ended.json["downtime_seconds"] is None
    assert ended.json["guest"]["state"] == (None if over_a_command else "paused")
    assert hosts.journals() == []
    assert called("unpause", "g", "--host", hosts.destination).code == 0
    domid = hosts.at_destination.find("g")
    wait_for(lambda: hosts.at_destination.report(domid).first_step_at, "it runs")
    assert hosts.at_destination.verify(domid, 30).memory_ok


def test_another_configuration_is_sent(hosts: Hosts, tmp_path: Path) -> None:
    domid = hosts.guest()
    config = hosts.at_source.config(domid)
    config["c_info"].update(name="h", uuid="11111111-2222-3333-4444-555555555555")
    file = tmp_path / "config"
    file.write_text(json.dumps([{"domid": 7, "config": config}]))
    ended = migrate(hosts, "-C", file)
    assert ended.code == 0, ended
    assert remarks(ended) == []
    assert hosts.states(hosts.at_destination) == {"h": "running"}
    there = hosts.at_destination.config(hosts.at_destination.find("h"))
    assert there["c_info"]["uuid"] == config["c_info"]["uuid"]


def test_what_is_no_configuration_is_refused_beforehand(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    file = tmp_path / "config"
    file.write_text("name = 'g'\n")
    ended = migrate(hosts, "-C", file)
    assert ended.code == 1
    assert str(file) in ended.line
    assert hosts.states(hosts.at_source) == {"g": "running"}


def test_all_memory_is_sent_again_and_compared(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    events = tmp_path / "events"
    ended = migrate(hosts, "--debug", "--events", events)
    assert ended.code == 0, ended
    assert remarks(ended) == []
    assert ended.json["pages_sent"] >= 2 * ((8 << 20) // 4096)
    assert '"verify"' in events.read_text()
    assert hosts.at_destination.verify(hosts.at_destination.find("g"), 30).memory_ok


def test_what_is_not_as_it_was_sent_is_told(hosts: Hosts) -> None:
    """A bit is turned in the second sending of a page, which is compared and not kept."""
    hosts.guest()
    turned = {**os.environ, "XEN_SAVE_HELPER_FAULTS": "source/stream@12000000=flip(0)"}
    arguments = ("migrate", "g", "--host", hosts.source, "--to", hosts.destination, "--json")
    ended = toolstack(*arguments, "--debug", "--max-rounds=0", env=turned)
    assert ended.code == 0, ended
    assert remarks(ended) == ["destination: verify failed for 1 pages in all"]
    assert hosts.at_destination.verify(hosts.at_destination.find("g"), 30).memory_ok


def test_a_long_downtime_is_told(hosts: Hosts) -> None:
    guest(hosts, 16)
    arguments = ("migrate", "g", "--host", hosts.source, "--to", hosts.destination)
    ended = called(*arguments, "--max-rounds=0", "--bandwidth=10M")
    assert ended.code == 0, ended
    (line,) = [line for line in ended.out.splitlines() if "warning" in line]
    assert line.startswith("warning: the guest stood still for")
    assert line.endswith("make that shorter")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--postcopy", "-p"), "paused"),
        (("--postcopy", "--debug"), "debug"),
        (("--postcopy", "--abort-after=3"), "abort_after"),
        (("--max-rounds=3", "--abort-after=3"), "not allowed with"),
        (("--abort-after=0",), "1 or more"),
        (("--max-downtime=-1",), "0 or more"),
    ],
)
def test_what_cannot_be_together(hosts: Hosts, more: tuple[str, ...], words: str) -> None:
    hosts.guest()
    ended = migrate(hosts, *more)
    assert ended.code == 2
    assert words in ended.err
    assert hosts.states(hosts.at_source) == {"g": "running"}


COMMANDS = {
    "init": (), "create": ("g",), "list": (), "destroy": ("g",), "pause": ("g",),
    "unpause": ("g",), "rename": ("g", "h"), "save": ("g", "f"), "restore": ("f",),
    "inspect": ("f",), "migrate": ("g", "--to", "d"), "receive": (), "recover": ("g",), "demo": (),
}  # fmt: skip
HELPERS = ("save", "restore", "migrate", "receive")
OPTIONS = {
    "--json": [name for name in COMMANDS if name != "receive"],
    "--host=/nowhere": [name for name in COMMANDS if name not in {"inspect", "demo"}],
    "--limit=suspend=1": [*HELPERS, "demo"],
    "--events=/nowhere/events": [*HELPERS, "demo"],
    "-v": [*HELPERS],
    "--helper=libxl": [*HELPERS],
    "--engine=own": [*HELPERS],
    "--missing-cpu-features=ignore": ["restore", "migrate", "receive"],
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_stands_only_where_it_does_something(option: str) -> None:
    from xen_save_helper.toolstack.commands.parser import make_parser

    parser = make_parser()
    for name, arguments in COMMANDS.items():
        given = [name, *arguments, option]
        if name in OPTIONS[option]:
            parser.parse_args(given)
        else:
            with pytest.raises(SystemExit) as refused:
                parser.parse_args(given)
            assert refused.value.code == 2, given
