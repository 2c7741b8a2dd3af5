"""What the log is told of a stream that stands still: to wait for the other side is no failure.

A second incoming guest waits for xl's global lock for as long as the first one's whole restore
lasts, and nobody reads its stream meanwhile; a sender says nothing while its guest suspends.
"""

from __future__ import annotations

from collections.abc import Callable

from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import LongWait


class WaitLog:
    """Says for how long the stream has stood still, and when it goes on (see `LongWait`).

    `tell(level, text)` says whether it could be told now.
    """

    def __init__(self, tell: Callable[[XentoollogLevel, str], bool], *, reading: bool) -> None:
        self._tell = tell
        self._wants = "send" if reading else "take"
        self._wait = LongWait(self._lasts, self._over)

    def look(self, quiet: float, ready: Callable[[], bool]) -> None:
        """`quiet`: seconds since an octet moved, 0 where the stream is not at work. `ready`:
        whether the other side could go on; then it is we who do not."""
        self._ready = ready
        self._wait.look(quiet)

    def _lasts(self, quiet: float) -> bool:
        if self._ready():
            text = f"the save helper does nothing for {quiet:.0f} s, and its stream is ready: "
            text += "a call into Xen or the kernel does not return"
        else:
            text = f"the stream has stood still for {quiet:.0f} s: "
            text += f"waiting for the other side to {self._wants} more"
        return self._tell(XentoollogLevel.WARN, text)

    def _over(self, quiet: float) -> bool:
        return self._tell(XentoollogLevel.NOTICE, f"the stream goes on after {quiet:.0f} s")
