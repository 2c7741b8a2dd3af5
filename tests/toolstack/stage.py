"""Simulated hosts and the real commands on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import IO, Any
from unittest import mock

from tests.waiting import wait_for
from xen_save_helper.helper.standard_streams import Output
from xen_save_helper.toolstack.commands.main import main
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

__all__ = ["TOOLSTACK", "Ended", "Hosts", "called", "toolstack", "wait_for"]

TOOLSTACK = [sys.executable, "-m", "xen_save_helper.toolstack.commands.main"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def line(self) -> str:
        """What it wrote to stderr, which must be one line of our own."""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("xen-toolstack: "), self.err
        return lines[0]


def toolstack(*arguments: object, timeout: float = 60, **more: Any) -> Ended:
    """Run a command to its end, within `timeout` seconds."""
    done = subprocess.run(
        [*TOOLSTACK, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **more,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@contextmanager
def _written_to(fd: int) -> Iterator[IO[bytes]]:
    """What this process and those that it starts write to `fd`, as a file."""
    before = os.dup(fd)
    try:
        with tempfile.TemporaryFile() as file:
            os.dup2(file.fileno(), fd)
            yield file
    finally:
        os.dup2(before, fd)
        os.close(before)


def called(*arguments: object) -> Ended:
    """Run a command to its end in this process: for what it does, prints and exits with, not how it
    starts, what signals do to it, or what its streams are. An interpreter's start is saved."""
    with _written_to(1) as out, _written_to(2) as err:
        streams = Output(1, "utf-8"), Output(2, "utf-8")
        with mock.patch.dict(os.environ), redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            try:
                code = main([*map(str, arguments)])
            except SystemExit as usage:
                code = usage.code
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode())
    return Ended(code, *texts)


class Hosts:
    """A source and a destination."""

    def __init__(self, at_source: SimulatedHost, at_destination: SimulatedHost) -> None:
        self.at_source = at_source
        self.at_destination = at_destination
        self.source = at_source.directory
        self.destination = at_destination.directory
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """A command in a session of its own; `close` ends it where the test did not."""
        process = subprocess.Popen(
            [*TOOLSTACK, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            with process:
                if process.poll() is None:
                    process.kill()

    def guest(self, name: str = "g", *, megabytes: int = 8, **more: Any) -> int:
        return self.at_source.create_guest(name, megabytes << 20, "random", **more)

    @staticmethod
    def states(host: SimulatedHost) -> dict[str, str]:
        return {row.name: row.state.value for row in host.domains()}

    def journals(self) -> list[str]:
        return [
            path.name for host in (self.source, self.destination) for path in host.glob("*journal*")
        ]
