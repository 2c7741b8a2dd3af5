"""The link between two controllers: the receiver as a child process, and what either side says and
hears of the handshake."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Final, TypeVar

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.ipc_schema.streams.xl_handshake import HandshakeMessage, Verdict
from xen_save_helper.toolstack.aio import fd_io
from xen_save_helper.toolstack.aio.patience import never, patience
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.standstill import session_stands_still
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, Destination

T = TypeVar("T")

_MOST_READ: Final = 64 << 20
"""Octets: more than the faults of any guest, behind which the last word of a receiver stands."""

_OWN: Final = "xen-toolstack: "
"""What a receiver's own lines begin with."""


class LinkError(OSError):
    """The other side said something else (EPROTO), nothing (ETIMEDOUT), or has gone (EPIPE,
    ECONNRESET); or the link failed otherwise."""


async def read_exactly(
    fd: int, size: int, limit: float, what: str, stopped: Callable[[], bool] = never
) -> bytes:
    """Read `size` octets of `what`. Raises LinkError at end of file, and where they are not there
    after `limit` seconds in which `stopped` did not say that the other side stands still."""
    try:
        async with patience(limit, stopped):
            return await fd_io.read_exactly(fd, size, limit=0, what=what)
    except TimeoutError:
        raise LinkError(errno.ETIMEDOUT, f"{what} did not come within {limit:g} s") from None
    except EOFError:
        text = f"the other side closed the link before {what}"
        raise LinkError(errno.EPIPE, text) from None
    except OSError as error:
        raise LinkError(error.errno, f"cannot receive {what}: {error.strerror}") from error


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
        raise LinkError(errno.EPROTO, f"the other side sent {data[:40]!r} instead of {what}")


async def write_all(
    fd: int, data: bytes, limit: float, what: str, stopped: Callable[[], bool] = never
) -> None:
    """Write `data`. Raises LinkError where the other side is gone or takes nothing."""
    try:
        async with patience(limit, stopped):
            await fd_io.write_all(fd, data, limit=0, what=what)
    except TimeoutError:
        text = f"the other side did not take {what} within {limit:g} s"
        raise LinkError(errno.ETIMEDOUT, text) from None
    except OSError as error:
        raise LinkError(error.errno, f"cannot send {what}: {error.strerror}") from error


class HandshakeLink:
    """Each message within the limit `handshake`. The descriptors stay the caller's; all methods
    raise LinkError where the other side has gone, says nothing or something else."""

    def __init__(
        self,
        ctx: Context,
        operation: Operation,
        hears: int,
        says: int,
        stopped: Callable[[], bool],
    ) -> None:
        """`operation` tells the side; it hears from the descriptor `hears`, and says on `says`.
        `stopped`: whether the other side stands still, where that can be seen."""
        self._stopped = stopped
        self._hears = hears
        self._says = says
        self._limit = ctx.limits.handshake
        ctx.seams.begin(operation)
        self._seam = ctx.seams.handshake

    async def say(self, message: HandshakeMessage, data: bytes | None = None) -> None:
        """`data` where the message is more than its fixed octets."""
        write = partial(self._write, message.what)
        octets = message.data if data is None else data
        await self._seam.say((self._hears, self._says), message, octets, write)

    async def hear(self, message: HandshakeMessage, limit: float | None = None) -> None:
        """Raises LinkError for other octets. `limit` in seconds, None for `handshake`."""
        await self.hear_by(message, partial(self._read, message, limit))

    async def hear_code(self, message: HandshakeMessage) -> int:
        """As `hear`, and the octet behind it."""

        async def read() -> int:
            await self._read(message)
            what = f"the octet behind {message.what}"
            (code,) = await read_exactly(self._hears, 1, self._limit, what, self._stopped)
            return code

        return await self.hear_by(message, read)

    async def hear_verdict(self) -> Verdict:
        """Raises DecodeError besides, for a verdict that is out of its bounds."""
        message = xl_handshake.VERDICT

        async def read() -> Verdict:
            await self._read(message)
            what = f"the rest of {message.what}"
            read = partial(read_exactly, self._hears, limit=self._limit, what=what)
            rc, length = xl_handshake.decode_verdict_head(await read(xl_handshake.VERDICT_SIZE))
            return Verdict(rc, xl_handshake.decode_reason(await read(length)))

        return await self.hear_by(message, read)

    async def hear_by(self, message: HandshakeMessage, read: Callable[[], Awaitable[T]]) -> T:
        """A message that `read` reads, whose errors are raised."""
        return await self._seam.hear((self._hears, self._says), message, read)

    async def _read(self, message: HandshakeMessage, limit: float | None = None) -> None:
        await read_message(
            self._hears, message.data, limit or self._limit, message.what, self._stopped
        )

    async def _write(self, what: str, octets: bytes) -> None:
        await write_all(self._says, octets, self._limit, what, self._stopped)


@dataclass
class ReceiverProcess:
    """A receiver that runs. `send_fd` and `recv_fd` are ours to close, once."""

    process: subprocess.Popen[bytes]
    send_fd: int
    recv_fd: int
    stderr: IO[bytes] | None
    """None if it writes to our own."""
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
        lines = self._stderr_lines()
        own = [line for line in lines if line.startswith(_OWN)]
        if not own and any(line.startswith("Traceback") for line in lines):
            own = lines
        return own[-1].removeprefix(_OWN) if own else ""

    def words(self) -> list[str]:
        """The lines that the receiver wrote to stderr; none where it writes to our own."""
        return [line.removeprefix(_OWN) for line in self._stderr_lines()]

    def _stderr_lines(self) -> list[str]:
        if self.stderr is None:
            return []
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace").strip().splitlines()

    def dispose(self) -> None:
        self.close_link()
        if self.stderr is not None:
            self.stderr.close()


def start_receiver(destination: Destination, *, paused: bool) -> ReceiverProcess:
    """Run `xen-toolstack receive` for a host on this machine, over socket pairs; or a command in
    place of a receiver, as `xl migrate` does: `sh -c`, over pipes. What that writes to stderr goes
    to ours. `paused`: the guest is not to run there. Raises OSError."""
    if isinstance(destination, CommandDestination):
        # As xl migrate -p has it for xl migrate-receive.
        command = destination.command + (" -p" if paused else "")
        return _start(["sh", "-c", command], os.pipe, None)
    receive = [
        *(sys.executable, "-m", "xen_save_helper.toolstack.commands.main", "receive"),
        *("--host", str(destination.directory), *destination.arguments),
        *(["--paused"] if paused else []),
    ]
    with contextlib.ExitStack() as opened:
        stderr = opened.enter_context(tempfile.TemporaryFile())
        receiver = _start(receive, _socket_pair, stderr)
        opened.pop_all()
    return receiver


def _socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def _start(
    command: Sequence[str], make_pair: Callable[[], tuple[int, int]], stderr: IO[bytes] | None
) -> ReceiverProcess:
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
    return ReceiverProcess(process, to_it, from_it, stderr)
