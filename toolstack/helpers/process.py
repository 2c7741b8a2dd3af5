"""A helper's process: starting it, reading its stderr, signalling it, reaping it."""

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
"""From Linux's include/linux/sched.h."""

_LONGEST_LINE: Final = 4096
"""Bytes of stderr that are passed on as one line at most."""


class HelperProcess:
    """A process in a session of its own: it is the controller that handles a ^C at the terminal,
    and ends its helper in order.

    `environment` is added to ours. `line` is called with each line of its stderr. `ended` is
    awaited once, with the exit status (negative for a signal), after the process has been reaped
    and its stderr read. If the process is stopped, it is continued after `stopped_limit` seconds,
    and `stood_still` is called with the seconds that it was. With `ignores_sigpipe` a pipe that
    nobody reads gives it EPIPE, as it does a helper that libxl starts (whose callers ignore the
    signal): its error path must not be cut off.
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
        """Start the process. Raises OSError."""
        self._line = line
        self._ended = ended
        self._process = subprocess.Popen(
            command,
            pass_fds=pass_fds,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.DEVNULL if stdout is None else stdout,
            stderr=subprocess.PIPE,
            start_new_session=True,
            # The interpreter ignores SIGPIPE, and ignored signals are inherited.
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
        """Send SIGTERM, and SIGCONT: a stopped process must run to handle it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()

    def stopped(self) -> bool:
        """Whether it is stopped, by a signal or a debugger."""
        return self._process.returncode is None and session_stands_still(self.pid)

    def exiting(self) -> bool:
        """Whether it has begun to exit. It closes its descriptors then, which on a busy machine is
        long before it can be reaped."""
        if self._process.returncode is not None:
            return True
        with open(f"/proc/{self.pid}/stat", "rb") as file:
            flags = file.read().rpartition(b")")[2].split()[6]
        return bool(int(flags) & _PF_EXITING)

    def bytes_moved(self) -> int:
        """The bytes that it and its living descendants have read and written by system calls that
        have returned (/proc/PID/io, proc(5)); 0 for those of which the kernel does not tell."""
        if self._process.returncode is not None:
            return 0
        return sum(map(_bytes_moved, family(self.pid)))

    def nudge(self) -> None:
        """Stop and continue it, with its children: a system call in progress returns what it has
        moved, or is restarted; nothing else happens."""
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
                data = os.read(self._stderr.fileno(), _LONGEST_LINE)
            except BlockingIOError:
                break
            if not data:
                self._close_stderr()
                break
            self._text += data
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


def _bytes_moved(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/io", "rb") as file:
            counters = dict(line.split(b": ") for line in file.read().splitlines())
    except OSError:
        return 0
    return int(counters[b"rchar"]) + int(counters[b"wchar"])
