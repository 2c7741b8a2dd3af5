"""The choice of hypervisor and helper for a command, and the errors for bad choices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.toolstack.stage import Hosts, called
from tests.toolstack.two_hosts import run
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import OUR_HELPER
from xen_save_helper.toolstack.operations.domain_save import domain_live_migrate, domain_suspend
from xen_save_helper.toolstack.operations.save import SaveResult
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl.outcome import ExitCode


@pytest.mark.parametrize("command", [("list",), ("save", "g", "f"), ("destroy", "g")])
def test_without_xen_a_host_must_be_named(command: tuple[str, ...]) -> None:
    ended = called(*command)
    assert ended.code == ExitCode.USAGE
    assert "no host is named; give --host DIR" in ended.line


@pytest.mark.parametrize("command", [("list",), ("save", "g", "f"), ("recover", "g")])
def test_xen_by_name_says_what_is_missing(command: tuple[str, ...]) -> None:
    ended = called(*command, "--host", "xen")
    assert ended.code == ExitCode.FAILED
    assert "no Xen here" in ended.line


@pytest.mark.parametrize("command", [("init",), ("create", "g")])
def test_what_only_simulated_hosts_have(command: tuple[str, ...]) -> None:
    ended = called(*command, "--host", "xen")
    assert ended.code == ExitCode.USAGE
    assert "this command is for simulated hosts; on Xen, use xl" in ended.line


def test_another_helper_does_the_work(hosts: Hosts, tmp_path: Path) -> None:
    """Ours, by libxl's protocol."""
    hosts.guest()
    helper = ("--helper", OUR_HELPER.path)
    events = tmp_path / "events"
    save = ("save", "g", tmp_path / "f", *helper, "--host", hosts.source)
    assert called(*save, "--events", events).code == 0
    restore = ("restore", tmp_path / "f", *helper, "--host", hosts.destination)
    assert called(*restore, "--events", events).code == 0
    report = hosts.at_destination.verify(hosts.at_destination.find("g"), 30)
    assert report.memory_ok
    # On ZeroMQ a helper begins with its hello.
    assert '"hello"' not in events.read_text()


@pytest.mark.parametrize(
    ("helper", "words"),
    [
        ("libxl", "works on real domains only"),
        ("/nowhere/helper", "want libxl or the path of a program"),
        ("/etc/passwd", "want libxl or the path of a program"),
    ],
)
def test_a_helper_that_cannot_be(hosts: Hosts, helper: str, words: str) -> None:
    hosts.guest()
    ended = called("save", "g", "f", "--helper", helper, "--host", hosts.source)
    assert ended.code == ExitCode.USAGE
    assert words in ended.line


def test_limits_of_precopy_that_the_helper_would_not_follow_are_refused(hosts: Hosts) -> None:
    """libxl's helper, of the mainline dialect, asks for no policy."""
    hosts.guest()
    ended = called(
        *("migrate", "g", "--to", hosts.destination, "--max-rounds", 2, "--json"),
        *("--helper", OUR_HELPER.path, "--host", hosts.source),
    )
    assert ended.code == ExitCode.FAILED
    result = json.loads(ended.out)
    assert (result["outcome"], result["rc"]) == ("running-at-source", Error.INVAL)
    assert "does not ask for a precopy policy" in result["reason"]
    assert hosts.states(hosts.at_source) == {"g": "running"}


@pytest.mark.parametrize("hypervisor", ["sim:/there", "xen"])
def test_the_engine_is_our_own_if_nobody_chose_one(hosts: Hosts, hypervisor: str) -> None:
    assert Context(hosts.at_source, hypervisor).engine == Engine.OWN


def test_what_libxenguest_cannot_do_is_refused_before_anything_is_done(hosts: Hosts) -> None:
    domid = hosts.guest()
    ctx = Context(hosts.at_source, "xen", engine_choice=Engine.LIBXENGUEST)

    def refused(result: SaveResult, words: str) -> None:
        assert result.rc == Error.INVAL
        assert words in result.reason
        assert not result.suspended

    with open("/dev/null", "r+b") as null:
        fd = null.fileno()
        postcopy = domain_live_migrate(ctx, domid, fd, 0, fd, MemoryStrategy.POSTCOPY)
        refused(run(postcopy), "libxenguest has no postcopy")
        refused(run(domain_suspend(ctx, domid, fd, bandwidth=1000)), "no bandwidth limit")
