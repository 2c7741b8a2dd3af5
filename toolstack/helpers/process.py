"""A helper's process: started, heard on stderr, signalled, reaped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.standstill import ChildWatch, family, session_stands_still

_PF_EXITING: Final = 0x4
"""Linux's include/linux/sched.h."""

_LONGEST_LINE: Final = 4096
"""Octets of a stderr line that are passed on as one."""


class HelperProcess:
    """A process in a session of its own: a ^C at the terminal is the controller's to handle, which
    ends its helper in order.

    `environment` is added to ours. `line` hears each line of its stderr, `ended` is awaited once
    with its exit status (negative: the signal), when it is reaped and its stderr was read.
    Where it is stopped it is let go on after `stopped_limit` seconds, and `stood_still` hears for
    how long it was. `ignores_sigpipe`: it hears of a pipe that nobody reads by EPIPE, as a helper
    does that libxl starts (its callers ignore the signal): its error path is not to be cut off.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        pass_fds: Sequence[int],
        stdin: int | None,
        stdout: int | None,
        environment: Mapping[str, str],
        line: Callable[[str], None],
        ended: Callable[[int], Coroutine[Any, Any, None]],
        stopped_limit: float,
        stood_still: Callable[[float], object],
        ignores_sigpipe: bool = True,
    ) -> None:
        """Start it. Raises OSError."""
        self._line = line
        self._ended = ended
        self._process = subprocess.Popen(
            command,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # The interpreter ignores SIGPIPE, and what is ignored is inherited.
            restore_signals=not ignores_sigpipe,
            env={**os.environ, **environment},
        )
        self.pid = self._process.pid
        assert self._process.stderr is not None
        self._stderr = self._process.stderr
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except OSError:
            self._stderr.close()
            self._process.kill()
            self._process.wait()
            raise
        os.set_blocking(self._stderr.fileno(), False)
        self._text = bytearray()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._stderr.fileno(), self._read_stderr)
        self._loop.add_reader(self._pidfd, self._reap)
        self._stops = ChildWatch(self.pid, stopped_limit, stood_still)
        self._task: asyncio.Task[None] | None = None

    def terminate(self) -> None:
        """SIGTERM, and SIGCONT: a stopped process must run to hear it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()

    def stopped(self) -> bool:
        """Whether a signal or a debugger has stopped it, and nothing has let it go on."""
        return self._process.returncode is None and session_stands_still(self.pid)

    def exiting(self) -> bool:
        """Whether its end has begun. What it holds is closed then, long before it can be reaped
        where the machine has much else to do."""
        if self._process.returncode is not None:
            return True
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            flags = file.read().rpartition(b")")[2].split()[6]
        return bool(int(flags) & _PF_EXITING)

    def octets(self) -> int:
        """What it and its living descendants have read and written by system calls that have
        returned (/proc/PID/io, proc(5)); of what the kernel does not tell, nothing."""
        if self._process.returncode is not None:
            return 0
        return sum(map(_octets_of, family(self.pid)))

    def nudge(self) -> None:
        """Stop it and let it go on, with what it has started: a system call that is under way
        returns with what it has moved, or is taken up again, and nothing else happens."""
        if self._process.returncode is not None:
            return
        for number in (signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def _reap(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._stops.cancel()
        status = self._process.wait()
        self._read_stderr()
        self._close_stderr()
        self._task = spawn(self._ended(status))

    def _read_stderr(self) -> None:
        while not self._stderr.closed:
            try:
                octets = os.read(self._stderr.fileno(), _LONGEST_LINE)
            except BlockingIOError:
                break
            if not octets:
                self._close_stderr()
                break
            self._text += octets
            *lines, self._text = self._text.split(b"\n")
            if len(self._text) > _LONGEST_LINE:
                lines.append(self._text)
                self._text = bytearray()
            for line in lines:
                self._line(line.decode(errors="backslashreplace"))

    def _close_stderr(self) -> None:
        if self._stderr.closed:
            return
        self._loop.remove_reader(self._stderr.fileno())
        self._stderr.close()
        if self._text:
            self._line(self._text.decode(errors="backslashreplace"))
            self._text = bytearray()


def _octets_of(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            counters = dict(line.split(b": ") for line in file.read().splitlines())
    except OSError:
        return 0
    return int(counters[b"rchar"]) + int(counters[b"wchar"])
