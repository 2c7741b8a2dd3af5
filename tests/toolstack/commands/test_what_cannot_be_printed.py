"""The exit code says what was done, even if that cannot be printed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.toolstack.stage import TOOLSTACK, Hosts, called, wait_for

NO_ROOM = "No space left on device"
CLOSED = "Bad file descriptor"
GONE = "Broken pipe"


@contextlib.contextmanager
def _full() -> Iterator[int]:
    fd = os.open("/dev/full", os.O_WRONLY)
    yield fd
    os.close(fd)


@contextlib.contextmanager
def _reader_gone() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def _close(*fds: int) -> Callable[[], None]:
    def close() -> None:
        for fd in fds:
            os.close(fd)

    return close


def _run(
    *arguments: object, stdout: str = "", stderr: str = ""
) -> subprocess.CompletedProcess[str]:
    """A command whose stdout and stderr are what their words say, pipes that are read otherwise."""
    with contextlib.ExitStack() as stack:
        given: dict[str, int] = {}
        closed = [fd for fd, how in ((1, stdout), (2, stderr)) if how == CLOSED]
        for name, how in (("stdout", stdout), ("stderr", stderr)):
            given[name] = subprocess.PIPE
            if how == NO_ROOM:
                given[name] = stack.enter_context(_full())
            elif how == GONE:
                given[name] = stack.enter_context(_reader_gone())
        return subprocess.run(
            [*TOOLSTACK, *map(str, arguments)],
            text=True,
            timeout=60,
            check=False,
            preexec_fn=_close(*closed),
            **given,
        )


def _one_line(text: str, *words: str) -> None:
    (line,) = text.splitlines()
    assert line.startswith("xen-toolstack: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    ("how", "as_json"),
    [(NO_ROOM, ()), (NO_ROOM, ("--json",)), (CLOSED, ("--json",)), (GONE, ())],
)
def test_a_migration_that_cannot_be_told_is_one(
    hosts: Hosts, how: str, as_json: Sequence[str]
) -> None:
    hosts.guest()
    to = ("--to", hosts.destination, "--host", hosts.source)
    ended = _run("migrate", "g", *to, *as_json, stdout=how)
    assert ended.returncode == 0
    assert (hosts.states(hosts.at_source), hosts.states(hosts.at_destination)) == (
        {},
        {"g": "running"},
    )
    _one_line(ended.stderr, how, "exit code 0")


@pytest.mark.parametrize("how", [NO_ROOM, CLOSED])
def test_so_it_is_with_all_that_do_something(hosts: Hosts, how: str, tmp_path: Path) -> None:
    here = ("--host", hosts.source)
    for command, states in (
        (("create", "g", "--memory", "8M", "--workload", "idle", *here), {"g": "running"}),
        (("pause", "g", *here), {"g": "paused"}),
        (("unpause", "g", *here), {"g": "running"}),
        (("save", "g", tmp_path / "file", "--json", *here), {}),
        (("restore", tmp_path / "file", *here), {"g": "running"}),
        (("destroy", "g", *here), {}),
        (("init", tmp_path / "host"), {}),
    ):
        ended = _run(*command, stdout=how)
        assert ended.returncode == 0, command
        assert hosts.states(hosts.at_source) == states
        _one_line(ended.stderr, how, "exit code 0")


@pytest.mark.parametrize("how", [NO_ROOM, GONE])
def test_a_failure_that_stderr_does_not_take_is_told_on_stdout(hosts: Hosts, how: str) -> None:
    hosts.guest()
    hosts.at_destination.create_guest("g", 1 << 20, "idle")
    given = ("migrate", "g", "--to", hosts.destination, "--host", hosts.source)
    ended = _run(*given, stderr=how)
    assert ended.returncode == 1
    assert "there is another guest 'g' here already" in ended.stdout.splitlines()[-1]
    document = _run(*given, "--json", stderr=how)
    assert document.returncode == 1
    assert "another guest" in json.loads(document.stdout)["reason"]
    neither = _run(*given, stdout=how, stderr=how)
    assert neither.returncode == 1
    assert hosts.states(hosts.at_source) == {"g": "running"}


@pytest.mark.parametrize("how", [NO_ROOM, CLOSED])
def test_what_only_prints_fails_where_it_cannot(hosts: Hosts, how: str, tmp_path: Path) -> None:
    hosts.guest()
    saved = ("save", "g", tmp_path / "file", "--checkpoint", "--host", hosts.source)
    assert called(*saved).code == 0
    for command in (
        ("list", "--host", hosts.source),
        ("list", "--json", "--host", hosts.source),
        ("inspect", tmp_path / "file"),
        ("faults", "list"),
        ("--help",),
    ):
        ended = _run(*command, stdout=how)
        assert ended.returncode == 1, command
        _one_line(ended.stderr, how)


def test_a_reader_that_has_read_enough_is_told_nothing(hosts: Hosts) -> None:
    ended = _run("list", "--host", hosts.source, stdout=GONE)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_no_file_is_taken_for_a_stream_that_was_closed(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    events = tmp_path / "events"
    given = ("migrate", "g", "--to", hosts.destination, "--host", hosts.source, "--events", events)
    ended = subprocess.run(
        [*TOOLSTACK, *map(str, given)], timeout=60, check=False, preexec_fn=_close(0, 1, 2)
    )
    assert ended.returncode == 0
    assert hosts.states(hosts.at_destination) == {"g": "running"}
    for line in events.read_text().splitlines():
        assert json.loads(line)["event"]


def test_nobody_waits_for_a_terminal_that_stands_still(hosts: Hosts, tmp_path: Path) -> None:
    hosts.guest()
    events = tmp_path / "events"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, bytes(4096))
    os.set_blocking(writer, True)
    given = ("migrate", "g", "--to", hosts.destination, "--host", hosts.source, "--events", events)
    with subprocess.Popen(
        [*TOOLSTACK, *map(str, given), "-v"], stdout=subprocess.DEVNULL, stderr=writer
    ) as process:
        try:
            wait_for(
                lambda: events.exists() and '"event": "migrated"' in events.read_text(),
                "the migration ends, though none of its log lines is taken",
            )
            assert hosts.states(hosts.at_destination) == {"g": "running"}

            def ended() -> bool:
                process.send_signal(signal.SIGINT)
                return process.poll() is not None

            # What is left is to print, which a person who has waited long enough may end.
            wait_for(ended, "its end")
            assert process.returncode == 0
        finally:
            process.kill()
    os.close(reader)
    os.close(writer)
