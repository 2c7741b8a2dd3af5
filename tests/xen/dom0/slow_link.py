"""A link that becomes slow, from stdin to stdout.

    python3 -m tests.xen.dom0.slow_link OCTETS

A guest has little of the one processor while dom0 sends its memory as fast as it can, and writes
less from round to round, until nothing is dirty. When so many octets have gone over this link, it
carries fewer than the guest writes: all that it writes over and over is dirty after each round.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

OCTETS_PER_SECOND: Final = 1 << 20
"""Of a slow link. A guest in log-dirty mode writes three times that, if only just."""
_AT_ONCE: Final = 1 << 16


def over_slow_link(octets: int, receive: str) -> str:
    """The shell command for `xl migrate -s ''`, of one that receives."""
    return f"python3 -m {__name__} {octets} | {receive}"


def main(octets: int) -> None:
    """Until stdin ends; BrokenPipeError where nobody reads any more."""
    while octets > 0 and (data := os.read(0, min(octets, _AT_ONCE))):
        octets -= len(data)
        _write(data)
    free = time.monotonic()
    while data := os.read(0, _AT_ONCE):
        # An idle link saves nothing up.
        free = max(free, time.monotonic()) + len(data) / OCTETS_PER_SECOND
        time.sleep(max(0.0, free - time.monotonic()))
        _write(data)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    main(int(sys.argv[1]))
