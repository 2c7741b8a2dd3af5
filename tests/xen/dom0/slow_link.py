"""A link that becomes slow, from stdin to stdout.

    python3 -m tests.xen.dom0.slow_link OCTETS

While dom0 sends a guest's memory as fast as it can, the guest gets little of the one processor and
writes less from round to round, until nothing is dirty. After OCTETS bytes this link carries less
than the guest writes, so that everything that it keeps overwriting is dirty after each round.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Final

from tests.xen.dom0.gate import write_all

OCTETS_PER_SECOND: Final = 1 << 20
"""The rate of a slow link. A guest in log-dirty mode was seen to write three times as fast when the
emulator's own machine was at its limit, and faster elsewhere."""
_AT_ONCE: Final = 1 << 16


def over_slow_link(octets: int, receive: str) -> str:
    """The shell command for `xl migrate -s ''`, with the command `receive` at the other end."""
    return f"python3 -m {__name__} {octets} | {receive}"


def main(octets: int) -> None:
    """Pass on what comes until stdin ends. Raises BrokenPipeError once nobody reads any more."""
    while data := os.read(0, _AT_ONCE):
        octets -= len(data)
        if octets < 0:
            time.sleep(len(data) / OCTETS_PER_SECOND)
        write_all(1, data)


if __name__ == "__main__":
    main(int(sys.argv[1]))
