"""Restores dom0 to the state that it had after booting."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from tests.xen.dom0.guest import CONSOLES

_XL_SECONDS: Final = 30
_LOGS: Final = Path("/var/log/xen")


def processes() -> dict[tuple[int, str], str]:
    """Every process except the kernel's and zombies: its (pid, start time), and its command."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            if not command:
                # Most processes are the kernel's, and this is called often.
                continue
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            found[int(entry.name), fields[19]] = command
    return found


def clean_up(ours: dict[tuple[int, str], str], limit: float) -> list[str]:
    """Destroy all guests, kill all processes that are not in `ours`, and empty /tmp and the logs.
    Returns what could not be cleared away within `limit` seconds; the machine is then unusable."""
    end = time.monotonic() + limit
    left: list[str] = []
    while time.monotonic() < end:
        left = []
        # Stray toolstacks first: they would only get in the way of xl destroy.
        for (pid, _start), command in _strangers(ours):
            left.append(f"process {pid}: {command}")
            if "qemu" not in command.split(" ", 1)[0]:
                kill(pid)
        for domid in _guests():
            left.append(f"domain {domid}")
            _xl("destroy", domid)
        if not left:
            break
        time.sleep(0.2)
    for directory in (Path("/tmp"), CONSOLES, _LOGS):
        for path in directory.glob("*"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return left


def describe(output: IO[bytes]) -> None:
    """Report what hangs: the processes, the guests, and where each process waits."""
    output.write(b"\n--- time is up; processes, their kernel stacks, guests:\n")
    for (pid, _start), command in sorted(processes().items()):
        output.write(f"{pid} {command}\n".encode())
        try:
            stack = Path(f"/proc/{pid}/stack").read_text().splitlines()[:4]
        except OSError:
            continue
        output.write("".join(f"      {line}\n" for line in stack).encode())
    output.write(_xl("list").encode())
    output.flush()


def _strangers(ours: dict[tuple[int, str], str]) -> Iterator[tuple[tuple[int, str], str]]:
    for key, command in processes().items():
        if key not in ours and key[0] != os.getpid():
            yield key, command


def kill(pid: int) -> None:
    """Send SIGKILL if the process still exists."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _guests() -> list[str]:
    rows = _xl("list").splitlines()[1:]
    return [row.split()[-5] for row in rows if row.split()[-5] != "0"]


def _xl(*arguments: str) -> str:
    """The program's output, and what went wrong with it, if anything did."""
    try:
        done = subprocess.run(
            ["xl", *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_XL_SECONDS,
        )
    except subprocess.TimeoutExpired as over:
        return f"{over}\n"
    return done.stdout
