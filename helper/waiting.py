"""What the log is told of a stream that stands still: to wait for the other side is no failure.

A second incoming guest waits for xl's global lock for as long as the first one's whole restore
lasts, and nobody reads its stream meanwhile; a sender says nothing while its guest suspends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel

PERIOD: Final = 60.0
"""Seconds until the first line, and between two."""


class WaitLog:
    """Says for how long the stream has stood still, each `PERIOD`, and once when it goes on.

    `tell(level, text)` says whether it could be told now; what could not is told at the next look.
    """

    def __init__(self, tell: Callable[[XentoollogLevel, str], bool], *, reading: bool) -> None:
        self._tell = tell
        self._wants = "send" if reading else "take"
        self._told = 0
        """Periods that were told of."""
        self._quiet = 0.0

    def look(self, quiet: float, ready: Callable[[], bool]) -> None:
        """`quiet`: seconds since an octet moved, 0 where the stream is not at work. `ready`:
        whether the other side could go on; then it is we who do not."""
        if self._told and quiet < self._quiet:
            text = f"the stream goes on after {self._quiet:.0f} s"
            if not self._tell(XentoollogLevel.NOTICE, text):
                return
            self._told = 0
        self._quiet = quiet
        if quiet < (self._told + 1) * PERIOD:
            return
        if ready():
            text = f"the save helper does nothing for {quiet:.0f} s, and its stream is ready: "
            text += "a call into Xen or the kernel does not return"
        else:
            text = f"the stream has stood still for {quiet:.0f} s: "
            text += f"waiting for the other side to {self._wants} more"
        if self._tell(XentoollogLevel.WARN, text):
            self._told = int(quiet // PERIOD)
