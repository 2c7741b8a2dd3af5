"""Log lines about a stream that stands still: waiting for the other side is not a failure.

A second incoming guest waits for xl's global lock until the first one is restored, and nobody reads
its stream meanwhile; a sender says nothing while its guest suspends.
"""

from __future__ import annotations

from collections.abc import Callable

from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import LongWait


class WaitLog:
    """Logs for how long the stream has stood still, and when it goes on (see `LongWait`).

    `tell(level, text)` returns whether it could log the line now.
    """

    def __init__(self, tell: Callable[[XentoollogLevel, str], bool], *, reading: bool) -> None:
        self._tell = tell
        self._wants = "send" if reading else "take"
        self._wait = LongWait(self._lasts, self._over)

    def look(self, quiet: float, ready: Callable[[], bool]) -> None:
        """`quiet` is the seconds since the last byte, 0 if the stream is not in use. `ready` says
        whether the other side could go on; then we are the ones who do not."""
        self._ready = ready
        self._wait.look(quiet)

    def _lasts(self, quiet: float) -> bool:
        if self._ready():
            text = f"the save helper has done nothing for {quiet:.0f} s, and its stream is ready: "
            text += "a call into Xen or the kernel does not return"
        else:
            text = f"the stream has stood still for {quiet:.0f} s: "
            text += f"waiting for the other side to {self._wants} more"
        return self._tell(XentoollogLevel.WARN, text)

    def _over(self, quiet: float) -> bool:
        return self._tell(XentoollogLevel.NOTICE, f"the stream goes on after {quiet:.0f} s")
