"""Starting a guest's process."""

from __future__ import annotations

import errno
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Final

import xen_save_helper
from xen_save_helper.helper.patience import poll_patiently

_MODULE: Final = "xen_save_helper.helper.hypervisors.simulated.guest"
_PACKAGES: Final = Path(xen_save_helper.__path__[0]).parent


def _environment() -> dict[str, str]:
    """The guest's environment: it must find this package, wherever we imported it from."""
    path = os.pathsep.join(filter(None, (str(_PACKAGES), os.environ.get("PYTHONPATH"))))
    # One thread is one vCPU: numpy's libraries need no pool of their own.
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _read_within(fd: int, timeout: float) -> bytes:
    """Read `fd` to its end. Raises TimeoutError if a part takes longer than `timeout` seconds."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    data = b""
    while True:
        if not poll_patiently(poller, timeout):
            raise TimeoutError("the guest's process did not start in time")
        part = os.read(fd, 65_536)
        data += part
        if not part:
            return data


class StartingGuest:
    """A guest's process that has started, but ends with its maker until it is released."""

    def __init__(self, domid: int, directory: int, timeout: float) -> None:
        """Start a process for the domain in `directory` (a descriptor).

        Raises TimeoutError, or OSError with the guest's own message.
        """
        ready, ready_end = os.pipe()
        try:
            go_end, self._go = os.pipe()
        except OSError:
            os.close(ready)
            os.close(ready_end)
            raise
        passed = (directory, ready_end, go_end)
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", _MODULE, str(domid), *map(str, passed)],
                    pass_fds=passed,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=_environment(),
                )
            finally:
                os.close(ready_end)
                os.close(go_end)
            answer = self._await(process, ready, timeout)
        except BaseException:
            os.close(self._go)
            raise
        finally:
            os.close(ready)
        if answer:
            os.close(self._go)
            raise OSError(errno.EIO, f"the guest's process did not start: {answer}")

    def _await(self, process: subprocess.Popen[bytes], ready: int, timeout: float) -> str:
        """The guest's account of what went wrong, "" if nothing did."""
        with process:
            try:
                data = _read_within(ready, timeout)
                process.wait(timeout)
            except BaseException:
                process.kill()
                raise
        if not data:
            return "it ended without saying why"
        return str(json.loads(data).get("error", ""))

    def release(self) -> None:
        """Let it live on by itself. Raises OSError (EIO) if it has already ended."""
        try:
            os.write(self._go, b"g")
        except BrokenPipeError as error:
            raise OSError(errno.EIO, "the guest's process ended while it started") from error
        finally:
            os.close(self._go)

    def cancel(self) -> None:
        """Let it end."""
        os.close(self._go)
