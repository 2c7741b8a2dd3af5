"""A failure is reported once, with its first cause, whichever side has it; -v adds the rest."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from tests import trace_lines
from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called, wait_for

CONSEQUENCES = (
    "Broken pipe",
    "the stream ends",
    "Invalid argument",
    "reset by peer",
    "partly received",
    "signal 15",
    "cancelled",
    "PAGE_DATA at",
)

RELAY = """
import os, subprocess, sys
left = int(sys.argv[1])
with subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, bufsize=0) as receiver:
    while left and (data := os.read(0, min(left, 65536))):
        receiver.stdin.write(data)
        left -= len(data)
    os.close(0)
    os.close(1)
"""
"""Takes a part of the stream to a receiver, and is gone."""


def migrate(hosts: Hosts, plan: str = "", *more: object, to: str = "") -> Ended:
    given = ("migrate", "g", "--to", to or hosts.destination, "--host", hosts.source, *more)
    with mock.patch.dict(os.environ, {"XEN_SAVE_HELPER_FAULTS": plan}):
        return called(*given)


def causes(events: Path) -> dict[str, str]:
    """The cause that each side tells at its end."""
    ends = {"migrated": "here", "received": "there"}
    lines = trace_lines.read(events)
    return {ends[line["event"]]: line["cause"] for line in lines if line["event"] in ends}


def receiver(hosts: Hosts) -> str:
    """As it is started over ssh: what it writes to stderr is seen, too."""
    return shlex.join([*TOOLSTACK, "receive", "--host", str(hosts.destination)])


@pytest.mark.parametrize(
    ("plan", "cause", "kind", "over"),
    [
        ("source/record.libxc.PAGE_DATA:write#2=kill", "by signal 9", "helper", "host"),
        ("source/record.libxc.PAGE_DATA:write#2=kill", "by signal 9", "helper", "command"),
        ("source/record.libxc.PAGE_DATA:write#2=enospc", "No space left", "system", "host"),
        ("source/suspend:before-send=exit(3)", "exit status 3", "helper", "command"),
        ("source/record.libxc.PAGE_DATA:write#2=signal(TERM)", "SIGTERM", "aborted", "host"),
    ],
)
def test_what_fails_here_is_not_what_the_destination_sees_of_it(
    hosts: Hosts, tmp_path: Path, plan: str, cause: str, kind: str, over: str
) -> None:
    hosts.guest()
    events = tmp_path / "events"
    to = receiver(hosts) if over == "command" else ""
    ended = migrate(hosts, plan, "--events", events, to=to)
    assert ended.code == 1
    assert causes(events)["here"] == kind
    assert cause in ended.line
    assert ended.line.endswith("; the guest runs on at the source")
    assert "destination" not in ended.line
    for consequence in CONSEQUENCES:
        assert consequence not in ended.line


@pytest.mark.parametrize("over", ["host", "command"])
@pytest.mark.parametrize(
    ("plan", "cause", "kind"),
    [
        ("destination/record.libxc.PAGE_DATA:read#2=kill", "killed by signal 9", "helper"),
        ("destination/record.libxc.END:read=wrong-number", "unknown mandatory type", "invalid"),
        ("destination.controller/handshake.ready:before-send=kill", "receiver was killed", None),
    ],
)
def test_what_fails_there_is_not_what_we_see_of_it(
    hosts: Hosts, tmp_path: Path, plan: str, cause: str, kind: str | None, over: str
) -> None:
    hosts.guest()
    events = tmp_path / "events"
    to = f"exec {receiver(hosts)}" if over == "command" else ""
    ended = migrate(hosts, plan, "--events", events, to=to)
    assert ended.code == 1
    # What has struck there is shown by the command.
    line = ended.err.splitlines()[-1] if over == "command" else ended.line
    told = causes(events)
    assert told["here"] == "destination"
    if over == "host":
        assert told.get("there") == kind
    assert cause in line
    assert line.endswith("; the guest runs on at the source")
    for consequence in ("Broken pipe", "reset by peer", "closed the link", "partly received"):
        assert consequence not in line


def test_what_another_program_says_is_shown_as_it_comes(hosts: Hosts, tmp_path: Path) -> None:
    """Without its line's end, too: it may ask for something."""
    hosts.guest()
    answer = tmp_path / "answer"
    os.mkfifo(answer)
    asks = "printf 'Warning: \\377\\nPassphrase for key: ' >&2"
    fails = "printf 'xen-toolstack: no such %s\\n' $line >&2; exit 1"
    command = f"{asks}; read line <{answer}; echo >&2; {fails}"
    process = hosts.start("migrate", "g", "--host", hosts.source, "--to", command)
    assert process.stderr is not None
    shown = ""
    while not shown.endswith("key: "):
        char = process.stderr.read(1)
        assert char, shown
        shown += char
    answer.write_text("host\n")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert shown == "Warning: \ufffd\nPassphrase for key: "
    assert err.count("no such host") == 1
    assert "destination: no such host" in err


def test_a_link_that_is_cut_is_told_as_that(hosts: Hosts) -> None:
    hosts.guest()
    relay = shlex.join([sys.executable, "-c", RELAY, "1000000"])
    ended = migrate(hosts, to=f"exec {relay} {receiver(hosts)}")
    assert ended.code == 1
    assert "the other side closed the link: " in ended.line
    assert ended.line.endswith("; the guest runs on at the source")


def test_what_came_of_it_is_told_to_those_who_ask(hosts: Hosts) -> None:
    hosts.guest()
    ended = migrate(hosts, "destination/record.libxc.PAGE_DATA:read#2=kill", "--verbose")
    assert ended.code == 1
    assert any(
        line.startswith("xen-toolstack[") and "after that: the other side closed the link" in line
        for line in ended.err.splitlines()
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_told_as_one(hosts: Hosts, tmp_path: Path, number: int) -> None:
    hosts.guest(megabytes=64)
    events = tmp_path / "events"
    given = ("--host", hosts.source, "--events", events, "--bandwidth", "16M")
    process = hosts.start("migrate", "g", "--to", hosts.destination, *given)
    wait_for(lambda: events.exists() and '"precopy"' in events.read_text(), "the first pages")
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == "xen-toolstack: interrupted; the guest runs on at the source\n"


def test_a_file_that_ends_too_early_is_told_once(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    saved = tmp_path / "file"
    assert called("save", "g", saved, "--host", hosts.source).code == 0
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with subprocess.Popen(f"head -c 1000000 {saved} > {fifo}", shell=True):
        ended = called("restore", fifo, "--host", hosts.source)
    assert ended.code == 1
    assert "the stream ends" in ended.line
    assert "Invalid argument" not in ended.line
