"""The link of a migration: the receiver as a child process, and the handshake's octets over it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.aio.patience import never, patience
from xen_save_helper.toolstack.standstill import session_stands_still

_MOST_READ: Final = 64 << 20
"""Octets: more than the faults of any guest, behind which the last word of a receiver stands."""

_OWN: Final = "xen-toolstack: "
"""What a receiver's own lines begin with."""


class LinkError(OSError):
    """The other side said something else, nothing, or has gone; the text says which."""


class LinkClosedError(LinkError):
    """The other side has gone, in order or not."""


async def read_exactly(
    fd: int, size: int, limit: float, what: str, stopped: Callable[[], bool] = never
) -> bytes:
    """Read `size` octets of `what`. Raises LinkError at end of file, and where they are not there
    after `limit` seconds in which `stopped` did not say that the other side stands still."""
    try:
        async with patience(limit, stopped):
            return await fd_io.read_exactly(fd, size, limit=0, what=what)
    except TimeoutError:
        raise LinkError(f"{what} did not come within {limit:g} s") from None
    except EOFError:
        raise LinkClosedError(f"the other side closed the link before {what}") from None
    except OSError as error:
        raise _kind_of(error)(f"cannot receive {what}: {error.strerror}") from error


async def read_to_end(fd: int, limit: float) -> bytes:
    """What comes until the other side closes the link, the link breaks, or nothing comes for
    `limit` seconds; of very much, the beginning."""
    came: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def done(data: bytes, _error: Exception | None) -> None:
        if not came.done():
            came.set_result(data)

    transfer = fd_io.start_read(fd, _MOST_READ, done, limit=limit)
    try:
        return await came
    finally:
        transfer.cancel()


async def read_message(
    fd: int, message: bytes, limit: float, what: str, stopped: Callable[[], bool] = never
) -> None:
    """Read one fixed message. Raises LinkError for anything else."""
    data = await read_exactly(fd, len(message), limit, what, stopped)
    if data != message:
        raise LinkError(f"the other side sent {data[:40]!r} instead of {what}")


async def write_all(
    fd: int, data: bytes, limit: float, what: str, stopped: Callable[[], bool] = never
) -> None:
    """Write `data`. Raises LinkError where the other side is gone or takes nothing."""
    try:
        async with patience(limit, stopped):
            await fd_io.write_all(fd, data, limit=0, what=what)
    except TimeoutError:
        raise LinkError(f"the other side did not take {what} within {limit:g} s") from None
    except OSError as error:
        raise _kind_of(error)(f"cannot send {what}: {error.strerror}") from error


def _kind_of(error: OSError) -> type[LinkError]:
    gone = isinstance(error, BrokenPipeError | ConnectionResetError)
    return LinkClosedError if gone else LinkError


@dataclass
class Receiver:
    """A receiver that runs. `send_fd` and `recv_fd` are ours to close, once."""

    process: subprocess.Popen[bytes]
    send_fd: int
    recv_fd: int
    complaints: IO[bytes] | None
    ended_by_us: bool = False
    """By a signal, since it took its time."""

    def stopped(self) -> bool:
        """Whether it is stopped: here, where it runs on this machine."""
        return self.process.returncode is None and session_stands_still(self.process.pid)

    def end_sending(self) -> None:
        if self.send_fd >= 0:
            os.close(self.send_fd)
            self.send_fd = -1

    def close_link(self) -> None:
        for fd in (self.send_fd, self.recv_fd):
            if fd >= 0:
                os.close(fd)
        self.send_fd = self.recv_fd = -1

    async def end(self, limit: float) -> int:
        """Close the link, and wait for the receiver to clean up and exit: twice `limit` seconds
        (it may have a helper to end first), then SIGTERM to its session, after `limit` SIGKILL.
        The time in which it is stopped does not count. Returns its exit status, negative for a
        signal."""
        self.close_link()
        for within, number in ((2 * limit, signal.SIGTERM), (limit, signal.SIGKILL)):
            if await self._exited(within):
                break
            self.ended_by_us = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
        # SIGKILL cannot be refused.
        return await asyncio.to_thread(self.process.wait)

    async def _exited(self, limit: float) -> bool:
        loop = asyncio.get_running_loop()
        exited = asyncio.Event()
        pidfd = os.pidfd_open(self.process.pid)
        try:
            loop.add_reader(pidfd, exited.set)
            async with patience(limit, self.stopped):
                await exited.wait()
        except TimeoutError:
            return False
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        return True

    def last_words(self) -> str:
        """The last line in which the receiver says of itself why it failed, or that a traceback
        ends in. Empty where there is none (what others write to the same stderr is no word of its
        own), or where it writes to our own."""
        lines = self._complaints()
        own = [line for line in lines if line.startswith(_OWN)]
        if not own and any(line.startswith("Traceback") for line in lines):
            own = lines
        return own[-1].removeprefix(_OWN) if own else ""

    def words(self) -> list[str]:
        """The lines that the receiver wrote to stderr; none where it writes to our own."""
        return [line.removeprefix(_OWN) for line in self._complaints()]

    def _complaints(self) -> list[str]:
        if self.complaints is None:
            return []
        self.complaints.seek(0)
        return self.complaints.read().decode(errors="replace").strip().splitlines()

    def dispose(self) -> None:
        self.close_link()
        if self.complaints is not None:
            self.complaints.close()


def start_on_host(directory: Path, arguments: Sequence[str]) -> Receiver:
    """Run `xen-toolstack receive` for a host on this machine, over socket pairs. Raises OSError."""
    command = [sys.executable, "-m", "xen_save_helper.toolstack.commands.main", "receive", "--host"]
    with contextlib.ExitStack() as opened:
        complaints = opened.enter_context(tempfile.TemporaryFile())
        receiver = _start([*command, str(directory), *arguments], _socket_pair, complaints)
        opened.pop_all()
    return receiver


def start_command(command: str) -> Receiver:
    """Run a command in place of a receiver, as `xl migrate` does: `sh -c`, over pipes. What it
    writes to stderr goes to ours. Raises OSError."""
    return _start(["sh", "-c", command], os.pipe, None)


def _socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def _start(
    command: Sequence[str], make_pair: Callable[[], tuple[int, int]], stderr: IO[bytes] | None
) -> Receiver:
    """`make_pair` opens a reading and a writing end."""
    with contextlib.ExitStack() as its_own, contextlib.ExitStack() as ours:
        its_stdin, to_it = make_pair()
        ours.callback(os.close, to_it)
        its_own.callback(os.close, its_stdin)
        from_it, its_stdout = make_pair()
        ours.callback(os.close, from_it)
        its_own.callback(os.close, its_stdout)
        process = subprocess.Popen(
            command, stdin=its_stdin, stdout=its_stdout, stderr=stderr, start_new_session=True
        )
        ours.pop_all()
    return Receiver(process, to_it, from_it, stderr)
