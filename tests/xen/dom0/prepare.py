"""What is done in dom0 once, before the host keeps the machine in the state that it has then:
everything that takes long and depends on the image alone.

Afterwards the share is given back (a machine with a share in use cannot be kept), the host is told
so over the second serial line, and dom0 waits there for the host's answer. Each machine that is
started from the kept one gets that answer, with the time of day.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import termios
import time
import traceback
import tty
from pathlib import Path
from typing import Final

from tests.xen.dom0 import clean_up, kept_guests
from tests.xen.dom0.share import HOST, Heartbeat, write

LINE: Final = Path("/dev/ttyS1")
READY: Final = b"ready\n"
_CLEAN_UP_SECONDS: Final = 60
_RIG: Final = Path("/run/rig")


def main(kinds: list[str]) -> None:
    line = os.open(LINE, os.O_RDWR | os.O_NOCTTY)
    tty.setraw(line, termios.TCSANOW)
    heartbeat = Heartbeat()
    ours = clean_up.processes()
    try:
        for kind in kinds:
            kept_guests.keep(kind)
        left = clean_up.clean_up(ours, _CLEAN_UP_SECONDS)
        assert not left, left
    except BaseException:
        write(HOST / "kept.json", {"error": traceback.format_exc()})
        raise
    heartbeat.end()
    write(HOST / "kept.json", {})
    os.sync()
    subprocess.run(["umount", HOST], check=True)
    os.write(line, READY)
    now = _read_line(line)
    time.clock_settime(time.CLOCK_REALTIME, float(now))
    mount = ["mount", "-t", "9p", "-o", "trans=virtio,version=9p2000.L", "host", HOST]
    subprocess.run(mount, check=True)
    # The rig's current code: the machine may have been kept for a long time.
    shutil.rmtree(_RIG)
    shutil.copytree(HOST / "rig", _RIG)


def _read_line(line: int) -> bytes:
    text = b""
    while not text.endswith(b"\n"):
        text += os.read(line, 64)
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
