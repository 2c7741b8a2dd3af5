"""A process that is forked cannot be told from one with an interpreter of its own."""

from __future__ import annotations

import fcntl
import os
import signal
import struct
import subprocess
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from tests import nursery
from tests.waiting import wait_for

COMMAND = [sys.executable, "-m", "xen_save_helper.toolstack.commands.main", "inspect", "-"]


def started(*, own: bool, **options: Any) -> subprocess.Popen[bytes]:
    """It waits for a stream on its stdin."""
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with ExitStack() as stack:
        if own:
            stack.enter_context(nursery.own_interpreters())
        process = subprocess.Popen(COMMAND, **pipes, **options)
    # One that reads has loaded and installed what it needs.
    assert process.stdin is not None
    os.write(process.stdin.fileno(), b"L")
    wait_for(lambda: not _unread(process.stdin), "it reads")
    return process


def _unread(pipe: IO[bytes] | None) -> int:
    assert pipe is not None
    (octets,) = struct.unpack("i", fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))
    return int(octets)


def _kind(fd: Path) -> str:
    """What a descriptor is. A library's own, which libffi has from its first use on, is none, and
    neither is that of a command's nursery."""
    is_one = int(fd.name) < nursery.HIGH and ".so" not in os.readlink(fd)
    return os.readlink(fd).partition("[")[0] if is_one else ""


def seen(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    of = Path(f"/proc/{process.pid}")
    status = dict(line.split(":\t") for line in (of / "status").read_text().splitlines())
    names = ("Umask", "PPid", "Uid", "Groups", "NoNewPrivs", "SigBlk", "SigIgn", "SigCgt")
    return {
        "command line": (of / "cmdline").read_bytes(),
        "environment": sorted((of / "environ").read_bytes().split(b"\0")),
        "directory": os.readlink(of / "cwd"),
        "program": os.readlink(of / "exe"),
        "name": psutil.Process(process.pid).name(),
        "session": os.getsid(process.pid) == process.pid,
        "group": os.getpgid(process.pid) == os.getpgrp(),
        "descriptors": sorted(filter(None, map(_kind, (of / "fd").iterdir()))),
        **{name: status[name] for name in names},
    }


@pytest.mark.parametrize("session", [False, True])
def test_what_the_system_says_of_it(tmp_path: Path, session: bool) -> None:
    passed = os.open(tmp_path, os.O_RDONLY)
    options = {
        "cwd": tmp_path,
        "env": {**os.environ, "OF_THE_TEST": "1"},
        "pass_fds": [passed],
        "start_new_session": session,
    }
    both = [started(own=own, **options) for own in (True, False)]
    os.close(passed)
    own, forked = (seen(process) for process in both)
    begun = [psutil.Process(process.pid).create_time() for process in both]
    for process in both:
        process.communicate(b"")
    assert forked == own
    assert begun == [pytest.approx(time.time(), abs=30)] * 2


def test_how_it_ends() -> None:
    ends = []
    for own in (True, False):
        process = started(own=own)
        out, err = process.communicate(b"no stream at all, but as long as a header would be")
        ends.append((process.returncode, out, err))
    assert ends[0] == ends[1]
    assert ends[0][0] == 1
    assert ends[0][2].startswith(b"xen-toolstack: ")


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_how_a_signal_ends_it(sent: signal.Signals) -> None:
    ends = []
    for own in (True, False):
        process = started(own=own)
        process.send_signal(sent)
        out, err = process.communicate()
        ends.append((process.returncode, out, err))
    assert ends[0] == ends[1]


def test_it_is_forked() -> None:
    """Where this cannot be done, the tests take twice as long."""
    process = started(own=False)
    (its_nursery,) = psutil.Process(process.pid).children()
    command = its_nursery.cmdline()
    process.communicate(b"")
    assert command == ["nursery"]
    gone = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    wait_for(
        lambda: not its_nursery.is_running() or its_nursery.status() in gone,
        "its nursery ends with it",
    )
