"""Starting a pager in the place of one that has died (`helper.postcopy_link.pager_again`)."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
from pathlib import Path
from typing import Final

from xen_save_helper.ipc_schema.channel import packets
from xen_save_helper.ipc_schema.control import PAGES, Identity

_MODULE: Final = "xen_save_helper.helper.postcopy_link.pager_again"
_SERVES_SECONDS: Final = 30.0


def start_again(directory: Path, died: Identity, events: str = "") -> str:
    """Start one in the place of `died`; returns its name. Raises OSError with its reason if it
    cannot take that place."""
    record = directory / (died.name + PAGES)
    if not record.exists():
        raise FileNotFoundError(f"{died.name} has left no record of what it had to bring")
    line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with line, theirs:
        process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", _MODULE),
                *(str(theirs.fileno()), str(record), str(directory), events),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        if not select.select([line], [], [], _SERVES_SECONDS)[0]:
            process.kill()
            process.wait()
            raise TimeoutError(f"another pager did not begin within {_SERVES_SECONDS:g} s")
        packet = packets.receive(line) or {"error": f"it has ended with status {process.wait(5)}"}
    # Nobody waits for it.
    process.returncode = 0
    if "error" in packet:
        raise OSError(f"another pager cannot take its place: {packet['error']}")
    return str(packet["serves"])
