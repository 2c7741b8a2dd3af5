"""How many bytes of a tunnel may be on their way.

A faulted page comes after all that is on its way when it is asked for. If that were always as much
as a fast and long link needs, each vCPU would wait for megabytes of pages in the background: on a
host that loads some hundred pages a second, for seconds. So it is as much as keeps the other side
busy: a window grows while bytes are read there about as soon as the soonest were, and shrinks while
they take longer, since they wait in a queue then.
"""

from __future__ import annotations

from collections import deque
from typing import Final

LEAST: Final = 1 << 18
"""Bytes: four records of pages."""
MOST: Final = 4 << 20
QUEUED_SECONDS: Final = 0.05
"""The longest that bytes may wait in queues, unless the least window alone takes longer."""

_LATER_PART: Final = 8


class Window:
    """Positions are numbers of bytes, from any beginning; times are monotonic seconds."""

    def __init__(self, begins: int = 0) -> None:
        """All before `begins` has been confirmed."""
        self.size = LEAST
        self._under_way: deque[tuple[int, float]] = deque()
        """The ends of parts, and when each was sent."""
        self._sent = self._confirmed = begins
        self._soonest = float("inf")
        """Seconds from a part's sending to its confirmation."""
        self._shrunk_at = begins
        """What was sent before this does not tell anything of the size since."""
        self._part = 1
        """By this part of itself it grows with each round trip."""

    def sent(self, end: int, now: float) -> None:
        """All before `end` is on its way."""
        self._under_way.append((end, now))
        self._sent = end

    def confirmed(self, end: int, now: float) -> None:
        """The other side has read all before `end`."""
        sent_at = None
        while self._under_way and self._under_way[0][0] <= end:
            last, sent_at = self._under_way.popleft()
        if sent_at is None:
            return
        was_full = self._sent - self._confirmed >= self.size // 2
        new, self._confirmed = end - self._confirmed, end
        self._soonest = min(self._soonest, now - sent_at)
        if now - sent_at > self._soonest + QUEUED_SECONDS:
            if last > self._shrunk_at:
                self.size = max(LEAST, self.size // 2)
                self._shrunk_at = self._sent
                # About the right size is known.
                self._part = _LATER_PART
        elif was_full:
            self.size = min(MOST, self.size + new // self._part)
