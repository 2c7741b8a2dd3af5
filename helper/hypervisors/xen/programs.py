"""Programs of the host's, run to their end."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from xen_save_helper.ipc_schema.channel.waits import Patience


def run_patiently(command: Sequence[str], limit: float) -> subprocess.CompletedProcess[bytes]:
    """Run `command` to its end, and take what it writes. After `limit` seconds in which this
    process ran it is killed: raises subprocess.TimeoutExpired."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        patience = Patience(limit, time.monotonic())
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=patience.wait)
                    break
                except subprocess.TimeoutExpired:
                    if patience.look(time.monotonic()):
                        raise
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
