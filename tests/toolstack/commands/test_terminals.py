"""What commands show on terminals of different widths, without colour, and if they are quiet."""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.conftest import HostFactory
from tests.toolstack.stage import TOOLSTACK, called
from xen_save_helper.toolstack.commands.parser import make_parser
from xen_save_helper.toolstack.commands.parser.adding import OneLineParser
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

LONG = "a-guest-whose-name-is-long-" * 3
STYLE = re.compile(r"\x1b\[[0-9;]*m")


def on_a_terminal(width: int, *arguments: object, **environment: str) -> str:
    """What a command shows on a terminal of so many columns."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    theirs = {"NO_COLOR", "COLUMNS", "LINES"}  # pytest's own, among others
    inherited = {name: value for name, value in os.environ.items() if name not in theirs}
    with subprocess.Popen(
        [*TOOLSTACK, *map(str, arguments)],
        stdout=its,
        stderr=its,
        env={**inherited, "TERM": "xterm-256color", **environment},
    ):
        os.close(its)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # the terminal's last user has gone
        os.close(ours)
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def host(host_factory: HostFactory) -> SimulatedHost:
    host = host_factory("host")
    host.create_guest("web", 1 << 20, "write-heavy")
    host.create_guest(LONG, 1 << 20, "idle")
    return host


@pytest.mark.parametrize("width", [20, 60, 120])
def test_a_list_is_folded_and_never_cut(host: SimulatedHost, width: int) -> None:
    shown = STYLE.sub("", on_a_terminal(width, "list", "--host", host.directory))
    assert max(map(len, shown.splitlines())) <= width
    for word in ("web", "write-heavy", "idle", "running", "MiB"):
        assert word in shown
    assert "…" not in shown
    # The name's parts stand below each other, each at its line's beginning.
    assert LONG in "".join(line.partition(" ")[0] for line in shown.splitlines())


def test_what_is_piped_has_its_whole_width(host: SimulatedHost) -> None:
    listed = called("list", "--host", host.directory)
    assert [line.split()[0] for line in listed.out.splitlines()] == ["Name", "web", LONG]
    names = called("list", "--name", "--host", host.directory)
    assert names.out.splitlines() == ["web", LONG]


def test_no_color(host: SimulatedHost) -> None:
    def colours(shown: str) -> list[str]:
        numbers = (number for style in STYLE.findall(shown) for number in style[2:-1].split(";"))
        return [number for number in numbers if number[:1] in {"3", "4", "9"} and len(number) > 1]

    assert colours(on_a_terminal(80, "list", "--host", host.directory))
    assert not colours(on_a_terminal(80, "list", "--host", host.directory, NO_COLOR="1"))


def test_quiet(host: SimulatedHost, tmp_path: Path) -> None:
    at = ("--host", host.directory)
    image = tmp_path / "image"
    for done in (
        ("create", "more", "--memory", "1M", *at),
        ("list", *at),
        ("save", "web", image, *at),
        ("restore", image, *at),
        ("inspect", image),
    ):
        ended = called(*done, "--quiet")
        assert (ended.code, ended.out, ended.err) == (0, "", ""), done
    failed = called("pause", "nobody", "-q", *at)
    assert (failed.code, failed.out) == (1, "")
    assert "there is no guest 'nobody'" in failed.line
    wrong = called("create", "web", "-q", "--memory", "1X", *at)
    assert (wrong.code, wrong.out) == (2, "")
    assert "invalid size" in wrong.err
    both = called("list", "--quiet", "--json", *at)
    assert both.code == 2
    assert "--quiet and --json exclude each other" in both.line


def test_quiet_shows_no_progress_but_writes_what_it_saves(host: SimulatedHost) -> None:
    shown = on_a_terminal(80, "save", "web", "/dev/null", "-q", "--host", host.directory)
    assert shown == ""
    done = subprocess.run(
        [*TOOLSTACK, "save", LONG, "-", "-q", "--host", str(host.directory)],
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith(b"Xen saved domain, xl format")
    assert done.stderr == b""


def test_quiet_migrations_that_fail_say_so(host: SimulatedHost, host_factory: HostFactory) -> None:
    there = host_factory("there")
    there.create_guest("web", 1 << 20, "idle")
    failed = called("migrate", "web", "--to", there.directory, "-q", "--host", host.directory)
    assert (failed.code, failed.out) == (1, "")
    assert "'web'" in failed.line
    moved = called("migrate", LONG, "--to", there.directory, "-q", "--host", host.directory)
    assert (moved.code, moved.out, moved.err) == (0, "", "")


def commands(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = [path]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                assert isinstance(command, OneLineParser)
                found += commands(command, (*path, name))
    return found


def test_each_command_tells_the_version() -> None:
    version = called("--version").out
    assert re.fullmatch(r"xen-toolstack \S+\n", version)
    for command in commands(make_parser()):
        told = called(*command, "--version")
        assert (told.code, told.out) == (0, version), command


def test_the_helper_tells_the_version() -> None:
    helper = [sys.executable, "-m", "xen_save_helper.helper.main", "--version"]
    done = subprocess.run(helper, capture_output=True, text=True, check=True)
    assert re.match(r"xen-save-helper \S+; ", done.stdout)
