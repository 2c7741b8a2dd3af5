"""The command line: the shape of its JSON, exit codes, one clear line for each mistake."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from tests.toolstack.stage import TOOLSTACK, Hosts, called, toolstack
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

MIGRATION_KEYS = {
    "outcome", "rc", "mode", "postcopy_transitioned", "rounds", "pages_sent", "bytes_sent",
    "total_seconds", "downtime_seconds", "stopped_seconds", "postcopy", "guest",
}  # fmt: skip


def test_life_of_a_guest(tmp_path: Path) -> None:
    host = tmp_path / "host"
    assert called("init", host).code == 0
    assert called("init", "--host", host, "--json").json == {"host": str(host)}
    created = called(
        "create", "g", "--memory", "8M", "--workload", "idle", "--host", host, "--json"
    )
    assert created.json["name"] == "g"
    (row,) = called("list", "--host", host, "--json").json
    assert {key: row[key] for key in ("name", "domid", "memory", "workload", "state", "waits")} == {
        "name": "g",
        "domid": created.json["domid"],
        "memory": 8 << 20,
        "workload": "idle",
        "state": "running",
        "waits": None,
    }
    for command, state in (("pause", "paused"), ("unpause", "running")):
        assert called(command, "g", "--host", host).code == 0
        assert called("list", "--host", host, "--json").json[0]["state"] == state
    assert "running" in toolstack("list", env={"XEN_TOOLSTACK_HOST": str(host)}).out
    assert called("create", "g", "--memory", "8M", "--host", host).line.endswith(
        "already a guest 'g' on this host"
    )
    assert called("destroy", "g", "--host", host).code == 0
    assert called("list", "--host", host, "--json").json == []


def test_list_cuts_no_name(tmp_path: Path) -> None:
    name = "a-guest-with-the-longest-of-names-" * 4
    assert called("init", tmp_path / "host").code == 0
    made = ("create", name, "--memory", "8M", "--workload", "idle", "--host", tmp_path / "host")
    assert called(*made).code == 0
    listed = toolstack("list", "--host", tmp_path / "host", env={"COLUMNS": "70"}).out
    (line,) = listed.splitlines()[1:]  # as `grep` and `awk` want it
    assert line.split()[0] == name
    assert called("destroy", name, "--host", tmp_path / "host").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list",), 2, "no host is named"),
        (("list", "--host", "/nowhere"), 1, "init /nowhere"),
        (("list", "--host", "/etc"), 1, "a simulated host"),
        (("destroy", "nobody", "--host", "SOURCE"), 1, "no guest 'nobody'"),
        (("pause", "nobody", "--host", "SOURCE"), 1, "no guest 'nobody'"),
        (("save", "nobody", "f", "--host", "SOURCE"), 1, "no guest 'nobody'"),
        (("migrate", "nobody", "--to", "SOURCE", "--host", "SOURCE"), 1, "no guest 'nobody'"),
        (("migrate", "g", "--to", "/etc", "--host", "SOURCE"), 1, "a simulated host"),
        (("migrate", "g", "--to", "/no/where", "--host", "SOURCE"), 1, "neither"),
        (("migrate", "g", "--to", "SOURCE", "--host", "SOURCE", "--limit", "x=1"), 2, "no such"),
        (
            ("migrate", "g", "--to", "SOURCE", "--host", "SOURCE", "--limit", "stream_stall=1e9"),
            2,
            "at most 1000000",
        ),
        (("save", "g", "f", "--host", "SOURCE", "--limit", "callback=1e300"), 2, "at most 1000000"),
        (("save", "g", "f", "--host", "SOURCE", "--limit", "callback=0"), 2, "above 0"),
        (("inspect", "/etc/passwd"), 1, "/etc/passwd"),
        (("inspect", "/nowhere"), 1, "No such file"),
        (("create", "n", "--memory", "5K", "--host", "SOURCE"), 2, "memory"),
        (("create", "n", "--behaviour", "rude", "--host", "SOURCE"), 2, "rude"),
    ],
)
def test_mistakes(hosts: Hosts, arguments: tuple[str, ...], code: int, words: str) -> None:
    if "SOURCE" in arguments:
        hosts.guest()
    given = [str(hosts.source) if word == "SOURCE" else word for word in arguments]
    ended = called(*given)
    assert ended.code == code, ended
    assert words in ended.line
    spoken = called(*given, "--json")
    assert spoken.code == code
    assert spoken.json["error"] or spoken.json["entries"] == []


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("fly",),
        ("create",),
        ("create", "g", "--memory", "much"),
        ("create", "g", "--workload", "lazy"),
        ("migrate", "g"),
        ("migrate", "g", "--to", "x", "--max-rounds", "-1"),
        ("demo", "--mode", "teleport"),
        ("demo", "--memory", "5K"),
        ("migrate", "g", "--to", "x", "--events", "-"),
    ],
)
def test_usage(arguments: tuple[str, ...]) -> None:
    ended = called(*arguments)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.endswith("--help`")


def test_where_nothing_more_can_be_written_it_says_where(tmp_path: Path) -> None:
    host = tmp_path / "host"
    called("init", host)
    before = sorted(host.rglob("*"))
    no_room = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (10, 10))
    done = toolstack("create", "g", "--host", host, preexec_fn=no_room)
    assert done.code == 1
    assert done.line == f"xen-toolstack: File too large: {host / 'xen-host.json'}"
    assert sorted(host.rglob("*")) == before


def test_it_says_its_version() -> None:
    told = toolstack("--version")
    assert told.code == 0
    assert re.fullmatch(r"xen-toolstack \d+\.\d+\.\d+\n", told.out)


def test_no_command_pays_for_another() -> None:
    script = (
        "import sys; from xen_save_helper.toolstack.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([n for n in ('rich', 'numpy', 'zmq', 'construct', 'asyncio') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def modules_of(*arguments: object) -> set[str]:
    """What a command's own process has imported by its end, without submodules."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *TOOLSTACK[1:], *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}


def test_a_command_loads_what_it_needs(host: SimulatedHost, tmp_path: Path) -> None:
    host.create_guest("g", 1 << 20, "idle")
    listed = modules_of("list", "--host", host.directory)
    assert "xen_save_helper" in listed
    assert listed & {"asyncio", "email", "msgpack", "numpy", "ssl", "zipfile", "zmq"} == set()
    saved = modules_of("save", "g", tmp_path / "image", "--host", host.directory)
    assert "zmq" in saved
    assert saved & {"email", "numpy", "rich", "zipfile"} == set()


@pytest.mark.parametrize("module", ["files", "migrate"])
def test_no_save_and_no_migration_pays_for_inspect(module: str) -> None:
    script = (
        f"import sys, xen_save_helper.toolstack.commands.{module}; print('numpy' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("mode", ["stop-and-copy", "precopy", "postcopy"])
def test_demo(tmp_path: Path, mode: str) -> None:
    events = tmp_path / "events"
    ended = toolstack(
        "demo", "--mode", mode, "--memory", "32M", "--json", "--events", events,
        env={"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert ended.code == 0, ended
    result = ended.json
    assert set(result) >= MIGRATION_KEYS
    assert (result["outcome"], result["rc"], result["mode"]) == ("success", 0, mode)
    assert result["guest"]["state"] == "running"
    assert result["guest"]["memory_ok"] is True
    assert result["guest"]["pages_checked"] >= (32 << 20) // 4096
    assert 0 < result["downtime_seconds"] < result["total_seconds"] + 1
    assert result["verified"] is True
    if mode == "postcopy":
        assert result["postcopy_transitioned"] == "done"
        assert set(result["postcopy"]) == {"pages", "faults", "fault_p50_us", "fault_p99_us"}
        assert result["postcopy"]["pages"] >= result["postcopy"]["faults"] > 0
        assert result["first_step_lead_seconds"] > 0
    else:
        assert result["postcopy_transitioned"] == "never"
        assert result["postcopy"] is None
        assert result["pages_sent"] >= (32 << 20) // 4096
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    assert {"controller", "receiver", "helper"} <= {line["process"] for line in lines}
    ends = Counter(
        (line["process"], line["doing_what"])
        for line in lines
        if line.get("name") == "progress" and line.get("done") == line["total"]
    )
    assert set(ends.values()) == {1}, "the end of a phase is told once"
    assert [path.name for path in tmp_path.iterdir()] == ["events"]


def test_demo_for_people(tmp_path: Path) -> None:
    ended = called("demo", "--memory", "8M", "--workload", "idle")
    assert ended.code == 0, ended
    for words in ("runs at the destination", "stood still", "compared every page"):
        assert words in ended.out
    assert ended.err == ""
