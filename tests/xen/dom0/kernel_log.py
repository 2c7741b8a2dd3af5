"""dom0's kernel log, and the programs that crashed according to it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Final

_FAULT: Final = re.compile(
    r"^(?:traps: )?(?P<program>[^\[]+)\[\d+\]:? "
    r"(?:segfault at|general protection|trap |bad frame)"
)


class KernelLog:
    """Reads /dev/kmsg from the log's oldest line on."""

    def __init__(self) -> None:
        self._fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def new_lines(self) -> list[str]:
        """The lines since the last call, without their prefixes."""
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192)
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                # The ring has wrapped; the next read starts at its oldest line.
                continue
            text = record.decode(errors="replace").partition(";")[2]
            lines.append(text.partition("\n")[0])


def faults(lines: Iterable[str]) -> list[dict[str, str]]:
    """Each program that died of a fault: its name, and the kernel's line about it."""
    found = []
    for line in lines:
        match = _FAULT.match(line)
        if match:
            found.append({"program": match["program"], "line": line})
    return found
