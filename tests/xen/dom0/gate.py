"""Stands between `xl migrate` and its receiver, and stops reading at a given point.

    python3 -m tests.xen.dom0.gate DIRECTORY OCTETS COMMAND...

Passes stdin on to COMMAND, whose stdout is ours. After OCTETS bytes it holds the stream: it creates
the file DIRECTORY/held with its pid, and reads on once DIRECTORY/open exists, or after
HOLD_SECONDS. It counts as another host's process: signals of a terminal here do not reach it, so
the stream is held whatever ends `xl`.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

HOLD_SECONDS: Final = 240
_AT_ONCE: Final = 1 << 20


class Gate:
    """The scenario's side: the directory in which the gate and the scenario meet."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()

    def command(self, octets: int, receive: str) -> str:
        """The shell command for `xl migrate -s ''`."""
        return f"exec python3 -m tests.xen.dom0.gate {self.directory} {octets} {receive}"

    @property
    def holds(self) -> bool:
        """Whether the gate holds the stream and still runs: nobody reads, and the writer's
        descriptor is valid."""
        try:
            pid = int((self.directory / "held").read_text())
            return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # empty for a zombie
        except (FileNotFoundError, ProcessLookupError):
            return False

    def open(self) -> None:
        (self.directory / "open").touch()


def main(directory: Path, octets: int, command: list[str]) -> int:
    """The command's exit status."""
    receiver = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    # Not earlier: the receiver would inherit that, and ignore it as well.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    assert receiver.stdin is not None
    into, left = receiver.stdin.fileno(), octets
    for pipe in (0, into):
        # Switching processes on the one emulated processor costs more than moving the data.
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _AT_ONCE)
    try:
        while left > 0:
            data = os.read(0, min(left, _AT_ONCE))
            if not data:
                break
            write_all(into, data)
            left -= len(data)
        else:
            _hold(directory)
            while data := os.read(0, _AT_ONCE):
                write_all(into, data)
    except BrokenPipeError:
        pass  # The receiver has ended, and says why.
    receiver.stdin.close()
    return receiver.wait()


def _hold(directory: Path) -> None:
    written = directory / "pid"
    written.write_text(str(os.getpid()))
    written.rename(directory / "held")
    end = time.monotonic() + HOLD_SECONDS
    while not (directory / "open").exists() and time.monotonic() < end:
        time.sleep(0.05)


def write_all(fd: int, data: bytes) -> None:
    """Raises BrokenPipeError once nobody reads any more."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
