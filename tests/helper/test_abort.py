from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.waiting import until_blocked
from xen_save_helper.helper.abort import Abort
from xen_save_helper.ipc_schema.channel.waits import BUFFERED


@dataclass
class Stuck:
    """A running `stuck_stream`, and our ends of its descriptors."""

    process: subprocess.Popen[str]
    stream: socket.socket
    peer: socket.socket
    lifeline: int

    def end(self) -> dict[str, Any]:
        """What it prints at its end."""
        out, _err = self.process.communicate(timeout=30)
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
        return result

    def until_full(self) -> None:
        """Wait until the stream takes no more: its writer is blocked, or about to be."""
        until_blocked(self.stream)


Start = Callable[..., Stuck]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Stuck] = []

    def begin(how: str, stall_limit: float = 0, admission: float = 0) -> Stuck:
        near, far = socket.socketpair()
        lifeline_read, lifeline = os.pipe()
        fds = (far.fileno(), lifeline_read)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tests.helper.engine.stuck_stream",
                how,
                *map(str, fds),
                str(stall_limit),
                str(admission),
            ],
            stdout=subprocess.PIPE,
            pass_fds=fds,
            text=True,
        )
        os.close(lifeline_read)
        stuck = Stuck(process, far, near, lifeline)
        running.append(stuck)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return stuck

    yield begin
    for stuck in running:
        stuck.process.kill()
        stuck.process.communicate()
        stuck.peer.close()
        stuck.stream.close()
        if stuck.lifeline >= 0:
            os.close(stuck.lifeline)


@pytest.mark.parametrize("how", ["write", "libc"])
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_a_write_that_nobody_reads(
    start: Start, how: str, signum: signal.Signals
) -> None:
    stuck = start(how)
    stuck.until_full()
    stuck.process.send_signal(signum)
    assert stuck.end() == {
        "failure": "EBADF",
        "errnoval": "ECANCELED",
        "reason": f"{signum.name} received",
        "lost": False,
        "fileno_ready": True,
    }
    assert stuck.process.returncode == 0


def test_a_signal_ends_a_write_that_is_read(start: Start) -> None:
    stuck = start("write")
    stuck.stream.close()
    reader = threading.Thread(target=lambda: all(iter(lambda: stuck.peer.recv(1 << 16), b"")))
    reader.start()
    stuck.process.send_signal(signal.SIGTERM)
    assert stuck.end()["failure"] == "EBADF"
    reader.join()


@pytest.mark.parametrize("how", ["write", "libc", "read"])
def test_the_controllers_death_is_an_abort(start: Start, how: str) -> None:
    stuck = start(how)
    os.close(stuck.lifeline)
    stuck.lifeline = -1
    ended = stuck.end()
    assert ended["failure"] == "EBADF"
    assert ended["errnoval"] == "EPIPE"
    assert ended["lost"]
    assert ended["reason"] == "the controller died"


@pytest.mark.parametrize(
    ("how", "what"),
    [("write", "taken"), ("libc", "taken"), ("read", "received"), ("read-much", "received")],
)
def test_a_stream_that_stands_still_is_given_up(start: Start, how: str, what: str) -> None:
    began = time.monotonic()
    ended = start(how, stall_limit=0.4).end()
    assert time.monotonic() - began > 0.4
    assert ended["errnoval"] == "ETIMEDOUT"
    assert f"nothing {what}" in ended["reason"]
    assert "0.4 s" in ended["reason"]


def test_a_receiver_that_has_not_begun_has_a_limit_of_its_own(start: Start) -> None:
    ended = start("write", stall_limit=30, admission=0.4).end()
    assert ended["errnoval"] == "ETIMEDOUT"
    assert ended["reason"] == "the receiver has not begun to take the stream for 0.4 s"


def test_a_receiver_that_has_begun_has_the_streams_limit(start: Start) -> None:
    stuck = start("write", stall_limit=0.4, admission=30)
    stuck.until_full()
    with pytest.raises(subprocess.TimeoutExpired):
        stuck.process.wait(1.2)
    taken = 0
    while taken <= BUFFERED:
        taken += len(stuck.peer.recv(1 << 20))
    ended = stuck.end()
    assert ended["errnoval"] == "ETIMEDOUT"
    assert ended["reason"] == "the stream stands still: nothing taken by the other side for 0.4 s"


@pytest.mark.parametrize(("how", "size"), [("write", 1 << 22), ("write-much", 1 << 16)])
def test_a_slow_stream_is_not_given_up(start: Start, how: str, size: int) -> None:
    stuck = start(how, stall_limit=2)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        assert stuck.peer.recv(size)
        assert stuck.process.poll() is None
        select.select([], [], [], 0.1)


def test_a_slow_stream_of_much_at_once_is_not_given_up_by_its_reader(start: Start) -> None:
    stuck = start("read-much", stall_limit=2)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        stuck.peer.send(bytes(1 << 12))
        assert stuck.process.poll() is None
        select.select([], [], [], 0.1)


def test_a_stream_that_has_nothing_to_carry_is_not_given_up(start: Start) -> None:
    stuck = start("idle", stall_limit=0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        stuck.process.wait(0.8)
    stuck.process.send_signal(signal.SIGTERM)
    assert stuck.end()["errnoval"] == "ECANCELED"


def test_a_restore_is_killed_by_sigterm(start: Start) -> None:
    stuck = start("read")
    stuck.process.send_signal(signal.SIGTERM)
    assert stuck.process.wait(30) == -signal.SIGTERM


def test_an_abort_that_came_first_takes_the_stream_at_once() -> None:
    near, far = socket.socketpair()
    with near, far, Abort() as abort:
        abort.request(errno.ECANCELED, "too late")
        abort.guard_stream(near.fileno())
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(near.fileno(), b"x")
        with pytest.raises(OSError, match="too late") as caught:
            abort.check()
        assert caught.value.errno == errno.ECANCELED


def test_a_stream_that_was_released_is_left_alone() -> None:
    near, far = socket.socketpair()
    with near, far, Abort() as abort:
        abort.guard_stream(near.fileno())
        abort.release_stream()
        abort.request(errno.ECANCELED, "too late")
        os.write(near.fileno(), b"x")
        assert far.recv(1) == b"x"


def test_the_first_reason_counts() -> None:
    with Abort() as abort:
        abort.check()
        assert not abort.requested
        abort.request(errno.ECANCELED, "the first")
        abort.request(errno.EPIPE, "the second", lost=True)
        assert (abort.errnoval, abort.reason, abort.lost) == (errno.ECANCELED, "the first", True)


def test_it_leaves_signals_and_descriptors_as_they_were(no_leaks: None) -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR1)}
    with Abort() as abort, open(os.devnull, "wb") as stream:
        abort.guard_stream(stream.fileno())
    assert {signum: signal.getsignal(signum) for signum in before} == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()
    assert signal.set_wakeup_fd(-1) == -1


def test_a_watcher_that_fails_is_an_abort(capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise it would see nothing more, and nobody would know."""
    abort = Abort()

    def fail() -> None:
        raise RuntimeError("a fault of its own")

    read, write = os.pipe()
    abort.watch(read, fail)
    with abort:
        assert select.select([abort], [], [], 10)[0]
        assert abort.errnoval == errno.EIO
        assert abort.reason == "the abort watcher failed: RuntimeError('a fault of its own')"
    assert "a fault of its own" in capsys.readouterr().err
    os.close(read)
    os.close(write)


def test_a_descriptor_is_watched() -> None:
    read, write = os.pipe()
    seen = threading.Semaphore(0)
    abort = Abort()

    def ready() -> None:
        if select.select([read], [], [], 0)[0]:
            os.read(read, 1)
            seen.release()

    abort.watch(read, ready)
    with abort:
        for _ in range(2):
            os.write(write, b"x")
            assert seen.acquire(timeout=10)
    os.close(read)
    os.close(write)
