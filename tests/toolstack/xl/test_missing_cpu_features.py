"""A destination whose CPU lacks what a guest was offered: refused by name before any of its memory
is there, unless the restore was started with leave to go on."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests import trace_lines
from tests.toolstack.stage import TOOLSTACK, Ended, Hosts, called, toolstack
from tests.toolstack.two_hosts import Side, run
from xen_save_helper.toolstack import (
    Context,
    MissingCpuFeatures,
    domain_create_restore,
    domain_suspend,
)
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

IGNORE = ("--missing-cpu-features", "ignore")
LACKS = "this host lacks CPU features that the guest was offered"
BY_VARIABLE = {"XEN_SAVE_HELPER_MISSING_CPU_FEATURES": "ignore"}
"""The drop-in's setting."""


@pytest.fixture
def older(hosts: Hosts) -> Hosts:
    """The destination lacks two features."""
    assert called("init", hosts.destination, "--lacks", "xsave,rdtscp").code == 0
    return hosts


def migrate(hosts: Hosts, *more: object, to: object = None) -> Ended:
    arguments = ("migrate", "g", "--host", hosts.source, "--to", to or hosts.destination)
    return called(*arguments, *more)


def test_a_host_may_lack_features(tmp_path: Path) -> None:
    host = tmp_path / "host"
    made = called("init", host, "--lacks", "pku, xsave", "--json")
    assert made.json == {"host": str(host), "lacks": ["pku", "xsave"]}
    assert called("init", host, "--json").json == made.json
    assert "without xsave" in called("init", host, "--lacks", "xsave").out
    refused = called("init", host, "--lacks", "xsave,xsvae")
    assert refused.code == 2
    assert "unknown CPU feature 'xsvae'" in refused.line
    assert "xsave" in refused.line.partition("did you mean")[2]
    assert SimulatedHost(host).lacks == ["xsave"]


def test_a_guest_is_offered_what_its_host_has(older: Hosts, tmp_path: Path) -> None:
    older.at_destination.create_guest("there", 2 << 20, "idle")
    file = tmp_path / "file"
    assert called("save", "there", file, "--host", older.destination).code == 0
    assert "xsave" not in called("inspect", file).out
    assert called("restore", file, "--host", older.destination).code == 0


@pytest.mark.parametrize("more", [(), ("--postcopy",)])
def test_a_migration_is_refused_before_its_first_page(older: Hosts, more: tuple[str, ...]) -> None:
    older.guest(megabytes=16)
    refused = migrate(older, *more, "--json")
    assert refused.code == 1
    assert f"{LACKS}: xsave, rdtscp." in refused.json["reason"]
    assert "--missing-cpu-features ignore" in refused.json["reason"]
    assert refused.json["postcopy_transitioned"] == "never"
    assert refused.json["pages_sent"] == 0
    # A little may be on its way before the destination looks; none of it was taken.
    assert refused.json["bytes_sent"] < 1 << 20
    assert older.states(older.at_source) == {"g": "running"}
    assert older.at_source.verify(older.at_source.find("g"), 30).memory_ok
    assert older.states(older.at_destination) == {}
    assert older.journals() == []
    told = migrate(older, *more)
    assert told.code == 1
    assert f"{LACKS}: xsave, rdtscp." in told.line
    went_on = migrate(older, *more, *IGNORE)
    assert went_on.code == 0, went_on
    assert older.states(older.at_destination) == {"g": "running"}


def test_a_guest_does_not_stand_still_for_a_destination_that_cannot_take_it(older: Hosts) -> None:
    """Not even one that would be stopped for the whole of its migration."""
    older.guest()
    events = older.source.parent / "events"
    refused = migrate(older, "--max-rounds", "0", "--events", events)
    assert refused.code == 1
    assert LACKS in refused.line
    names = {event["event"] for event in trace_lines.read(events)}
    assert "suspend_request" not in names
    assert older.states(older.at_source) == {"g": "running"}


def test_a_receiver_that_a_command_starts_has_its_own_setting(older: Hosts) -> None:
    older.guest()
    receiver = f"exec {' '.join(TOOLSTACK)} receive --host {older.destination}"
    refused = migrate(older, *IGNORE, to=receiver)
    assert refused.code == 2
    assert "receive --missing-cpu-features ignore" in refused.line
    refused = migrate(older, to=receiver)
    assert refused.code == 1
    # The receiver says it, as it would over ssh.
    assert refused.err.count(f"{LACKS}: xsave, rdtscp.") == 1
    assert older.states(older.at_source) == {"g": "running"}
    assert migrate(older, to=f"{receiver} {' '.join(IGNORE)}").code == 0
    assert older.states(older.at_destination) == {"g": "running"}


def test_a_restore(older: Hosts, tmp_path: Path) -> None:
    older.guest()
    file = tmp_path / "file"
    assert called("save", "g", file, "--host", older.source).code == 0
    restore = ("restore", file, "--host", older.destination)
    # What the drop-in is told under xl does not decide for our own commands.
    for environ in ({}, BY_VARIABLE):
        refused = toolstack(*restore, env=environ)
        assert refused.code == 1
        assert f"{LACKS}: xsave, rdtscp." in refused.line
        assert older.states(older.at_destination) == {}
    assert called(*restore, "--missing-cpu-features", "perhaps").code == 2
    restored = called(*restore, *IGNORE, "-v")
    assert restored.code == 0
    assert f"{LACKS}: xsave, rdtscp; " in restored.err
    assert older.states(older.at_destination) == {"g": "running"}


def test_a_restore_by_a_program_that_speaks_libxls_protocol(older: Hosts, tmp_path: Path) -> None:
    """It is told by what such a program can be told by."""
    older.guest()
    file, program = tmp_path / "file", tmp_path / "helper"
    assert called("save", "g", file, "--host", older.source).code == 0
    helper = " ".join([TOOLSTACK[0], "-m", "xen_save_helper.helper.main"])
    program.write_text(f'#!/bin/sh\nexec {helper} "$@"\n')
    program.chmod(0o755)
    restore = ("restore", file, "--host", older.destination, "--helper", program)
    refused = toolstack(*restore, env=BY_VARIABLE)
    assert refused.code == 1
    assert f"{LACKS}: xsave, rdtscp." in refused.line
    assert called(*restore, *IGNORE).code == 0


@pytest.mark.parametrize("choice", MissingCpuFeatures)
def test_by_the_library(older: Hosts, tmp_path: Path, choice: MissingCpuFeatures) -> None:
    domid = older.guest()
    source, there = Side(older.at_source), Side(older.at_destination)
    config = older.at_source.config(domid)
    ctx = replace(there.ctx, missing_cpu_features=choice)

    async def both() -> tuple[int, str]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            _, restored = await asyncio.gather(
                domain_suspend(source.ctx, domid, ours.fileno()),
                domain_create_restore(ctx, config, "g", theirs.fileno()),
            )
        return restored.rc, restored.reason

    rc, reason = run(both())
    if choice is MissingCpuFeatures.IGNORE:
        assert (rc, reason) == (0, "")
    else:
        assert rc
        assert f"{LACKS}: xsave, rdtscp." in reason
    opened = Context.open(f"sim:{older.destination}", missing_cpu_features=choice)
    assert opened.missing_cpu_features is choice
