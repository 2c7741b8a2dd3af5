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

from tests.xen.dom0.gate import write_all

OCTETS_PER_SECOND: Final = 1 << 20
"""Of a slow link. A guest in log-dirty mode was seen to write three times that where the emulator's
own machine was at its limit, and more elsewhere."""
_AT_ONCE: Final = 1 << 16


def over_slow_link(octets: int, receive: str) -> str:
    """The shell command for `xl migrate -s ''`, of one that receives."""
    return f"python3 -m {__name__} {octets} | {receive}"


def main(octets: int) -> None:
    """Until stdin ends; BrokenPipeError where nobody reads any more."""
    while data := os.read(0, _AT_ONCE):
        octets -= len(data)
        if octets < 0:
            time.sleep(len(data) / OCTETS_PER_SECOND)
        write_all(1, data)


if __name__ == "__main__":
    main(int(sys.argv[1]))
