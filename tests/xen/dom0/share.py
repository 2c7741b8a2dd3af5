"""dom0's side of the directory that it shares with the host."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Final

HOST: Final = Path("/host")
HEARTBEAT_SECONDS: Final = 1.0


class Heartbeat:
    """Tell the host every second that dom0 runs. This has a process of its own, so that nothing
    that is done here can delay it."""

    def __init__(self) -> None:
        self._pid = os.fork()
        if self._pid == 0:
            _beat()

    def end(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)


def _beat() -> None:
    fd = os.open(HOST / "heartbeat", os.O_WRONLY | os.O_CREAT, 0o644)
    while True:
        os.pwrite(fd, f"{time.monotonic():.0f}\n".encode(), 0)
        time.sleep(HEARTBEAT_SECONDS)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write all or nothing: the host waits for the name to appear."""
    scratch = path.with_suffix(".tmp")
    scratch.write_text(json.dumps(content))
    scratch.rename(path)
