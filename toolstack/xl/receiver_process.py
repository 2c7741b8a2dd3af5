"""The receiver of a migration as the sender sees it: a child process at the other end of a link."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.toolstack import standstill
from xen_save_helper.toolstack.aio.patience import patience
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.rules.cause import Failure
from xen_save_helper.toolstack.xl.link import HandshakeLink
from xen_save_helper.toolstack.xl.migrate_options import CommandDestination, Destination
from xen_save_helper.toolstack.xl.receiver_stderr import ReceiverStderr


@dataclass(frozen=True)
class ReceiverEnd:
    """How a receiver ended. `status` is its exit status, negative for a signal; `by_us`: we sent
    that signal, since it took too long. `lines` are those that it wrote to stderr, `own` those
    among them in which it speaks for itself."""

    status: int
    by_us: bool
    lines: Sequence[str]
    own: Sequence[str]

    def failure(self, destination: Destination, cause: Failure | None) -> str:
        """What the end says of the failure whose `cause` is known so far; "" if nothing. A receiver
        of ours says nothing if it only knows that we have gone, or beyond a verdict that it has
        sent."""
        if self.by_us or not self.status:
            return ""
        if self.status < 0:
            return f"the receiver was killed by signal {-self.status}"
        if self.own:
            return f"destination: {self.own[-1]}"
        if isinstance(destination, CommandDestination):
            before = f"{cause.reason}; " if cause is not None and cause.theirs else ""
            words = f": {self.lines[-1]}" if self.lines else ""
            return f"{before}{destination} ended with exit status {self.status}{words}"
        return ""


class RunningReceiver:
    """A receiver that runs, the link to it, and a watch that lets it go on if it is stopped."""

    def __init__(self, ctx: Context, destination: Destination, *, paused: bool) -> None:
        """Start it. `paused`: the guest must not run there. Raises OSError."""
        self._limit = ctx.limits.abort
        self.process = start_receiver(destination, paused=paused)
        self.process.stderr.watch()
        self.link = HandshakeLink(
            ctx,
            Operation.SAVE,
            self.process.recv_fd,
            self.process.send_fd,
            self.process.stopped,
        )
        self._watch = standstill.ChildWatch(
            self.process.process.pid,
            ctx.limits.stopped,
            partial(standstill.tell, ctx, standstill.RECEIVER),
        )

    async def end(self) -> ReceiverEnd:
        """Close the link, and wait for the receiver to end (`ReceiverProcess.end`)."""
        process = self.process
        try:
            status = await process.end(self._limit)
            said = process.stderr
            return ReceiverEnd(status, process.ended_by_us, said.lines(), said.own_lines())
        finally:
            process.dispose()
            self._watch.cancel()


@dataclass
class ReceiverProcess:
    """The process of a receiver, and our ends of the link to it."""

    process: subprocess.Popen[bytes]
    send_fd: int
    recv_fd: int
    stderr: ReceiverStderr
    ended_by_us: bool = False
    """We have sent it a signal, since it took too long."""

    def stopped(self) -> bool:
        """Whether it is stopped, on this machine."""
        return self.process.returncode is None and standstill.session_stands_still(self.process.pid)

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
        """Close the link, and wait for the receiver to clean up and exit: after twice `limit`
        seconds (it may have a helper to end first) its process group gets SIGTERM, after `limit`
        more SIGKILL. Time in which it is stopped does not count. Returns its exit status, negative
        for a signal."""
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

    def dispose(self) -> None:
        self.close_link()
        self.stderr.close()


def start_receiver(destination: Destination, *, paused: bool) -> ReceiverProcess:
    """Run `xen-toolstack receive` for a host on this machine, over socket pairs; or a command, as
    `xl migrate` does: `sh -c` over pipes. `paused`: the guest must not run there. Raises
    OSError."""
    if isinstance(destination, CommandDestination):
        # xl migrate -p does so for xl migrate-receive.
        command = ["sh", "-c", destination.command + (" -p" if paused else "")]
        make_pair, echo = os.pipe, not destination.keep_stderr
    else:
        command = [
            *(sys.executable, "-m", "xen_save_helper.toolstack.commands.main", "receive"),
            *("--host", str(destination.directory), *destination.arguments),
            *(["--paused"] if paused else []),
        ]
        make_pair, echo = _socket_pair, False
    with contextlib.ExitStack() as opened:
        stderr = ReceiverStderr(echo=echo)
        opened.callback(stderr.close)
        receiver = _start(command, make_pair, stderr)
        opened.pop_all()
    return receiver


def _socket_pair() -> tuple[int, int]:
    one, other = socket.socketpair()
    return one.detach(), other.detach()


def _start(
    command: Sequence[str], make_pair: Callable[[], tuple[int, int]], stderr: ReceiverStderr
) -> ReceiverProcess:
    """Start `command` on two new pairs; `make_pair` opens a reading and a writing end."""
    with contextlib.ExitStack() as its_own, contextlib.ExitStack() as ours:
        its_stdin, to_it = make_pair()
        ours.callback(os.close, to_it)
        its_own.callback(os.close, its_stdin)
        from_it, its_stdout = make_pair()
        ours.callback(os.close, from_it)
        its_own.callback(os.close, its_stdout)
        process = subprocess.Popen(
            command,
            stdin=its_stdin,
            stdout=its_stdout,
            stderr=stderr.fileno(),
            start_new_session=True,
        )
        ours.pop_all()
    return ReceiverProcess(process, to_it, from_it, stderr)
