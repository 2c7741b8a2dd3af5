"""A slow link, from stdin to stdout.

A stream that nothing holds up keeps dom0 busy, on the one processor that it shares with the guest:
the guest hardly runs, and soon has nothing dirty. Over this link it runs, and writes.
"""

from __future__ import annotations

import os
import time
from typing import Final

OCTETS_PER_SECOND: Final = 4 << 20
"""Of a guest that writes 8 MiB over and over, all 8 MiB are dirty after each round."""
_AT_ONCE: Final = 1 << 16


def over_slow_link(receive: str) -> str:
    """The shell command for `xl migrate -s ''`, of one that receives."""
    return f"python3 -m {__name__} | {receive}"


def main() -> None:
    """Until stdin ends; BrokenPipeError where nobody reads any more."""
    free = time.monotonic()
    while data := os.read(0, _AT_ONCE):
        # An idle link saves nothing up.
        free = max(free, time.monotonic()) + len(data) / OCTETS_PER_SECOND
        time.sleep(max(0.0, free - time.monotonic()))
        while data:
            data = data[os.write(1, data) :]


if __name__ == "__main__":
    main()
