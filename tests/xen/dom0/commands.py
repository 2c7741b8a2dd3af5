"""Runs programs with time limits, and records all their output."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Ended:
    """How a program ended: its exit status (negative for a signal), its output, and the seconds it
    took."""

    status: int
    output: str
    seconds: float


class Program:
    """A running program, which leads a session of its own; stdout and stderr go into one file."""

    def __init__(
        self, command: Sequence[str | Path], env: Mapping[str, str | None] | None = None
    ) -> None:
        """`env` is added to our own environment; None removes a variable."""
        self.command = [str(word) for word in command]
        environment = {**os.environ, **(env or {})}
        self._output = os.memfd_create("output", os.MFD_CLOEXEC)
        self._started, self._ended = time.monotonic(), 0.0
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            start_new_session=True,
            env={name: value for name, value in environment.items() if value is not None},
        )
        print(f"+ {shlex.join(self.command)}", flush=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """The output so far."""
        size = os.fstat(self._output).st_size
        return os.pread(self._output, size, 0).decode(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone, as `kill` does."""
        self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Whether the program ends within `seconds`."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        self._ended = self._ended or time.monotonic()
        return True

    def end(self, limit: float) -> Ended:
        """Wait for the program to end. If it takes longer than `limit` seconds, its whole session
        is killed, and AssertionError is raised."""
        if not self.wait(limit):
            self.kill_session()
            self._process.wait()
            print(self.output, end="", flush=True)
            raise AssertionError(f"{shlex.join(self.command)} ran longer than {limit:g} s")
        status = self._process.returncode
        ended = Ended(status, self.output, self._ended - self._started)
        print(ended.output, end="", flush=True)
        print(f"= {status} after {ended.seconds:.1f} s", flush=True)
        return ended

    def tell_unfinished(self) -> None:
        """Print the output so far, unless the program has been waited for."""
        if not self._ended:
            print(f"{shlex.join(self.command)}, not waited for:\n{self.output}", flush=True)

    def kill_session(self) -> None:
        """Send SIGKILL to the program and its children, except those that have started a session of
        their own."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run(
    command: Sequence[str | Path],
    limit: float = 60,
    env: Mapping[str, str | None] | None = None,
) -> Ended:
    """Run a program to its end, whatever its exit status."""
    return Program(command, env).end(limit)


def wait_until(what: str, condition: Callable[[], bool], limit: float, every: float = 0.2) -> None:
    """Raises an AssertionError that says `what` if `condition` stays false for `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, f"not within {limit:g} s: {what}"
        time.sleep(every)
