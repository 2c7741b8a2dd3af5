"""Which page a postcopy sender sends next. No I/O: faults in, batches out."""

from __future__ import annotations

from collections import deque

import numpy as np

from helper.hypervisors.interface import Bitmap, Pfns
from helper.page_stream import set_bits

POSTCOPY_BATCH = 64
"""Pages of a POSTCOPY_PAGE_DATA record: few, since a fault waits for the record under way."""

_STRIDE = 16
"""Background pages of a record, while faults come."""
_CALM_SECONDS = 0.02
"""The guest runs from fault to fault until this long after the last one."""
_FASTEST, _SLOWEST = 60_000.0, 2_000.0
"""Bounds of the rate of background pages while faults come, in pages a second. It follows what the
receiver can put in place: pages that came faster would pile up there, and every fault's page would
arrive behind the pile."""
_SLOWER, _FASTER = 0.5, 1.02
"""What a fault does to that rate: the first where the pile is seen, the second where it is not."""


class BackgroundShare:
    """How many pages that nobody waits for may go, so that those that are waited for go fast.

    In calm, whatever the stream takes. While faults come, none along with a faulted page, and short
    records of them between faults, at a rate that goes down at each fault that finds the stream
    full, and up again slowly. Times are in seconds, from any start.
    """

    def __init__(self) -> None:
        self._last_fault = -_CALM_SECONDS
        self._paid_until = 0.0
        self._rate = _FASTEST

    def allowed(self, now: float, urgent: int, writable: bool) -> int:
        """For the record that is made now: `urgent` pages are waited for, `writable` says whether
        the stream would take more at once. To be sent then."""
        if urgent:
            self._last_fault = now
            change = _FASTER if writable else _SLOWER
            self._rate = min(max(self._rate * change, _SLOWEST), _FASTEST)
            return 0
        if not writable:
            return 0
        if self._calm(now):
            return POSTCOPY_BATCH
        if self.delay(now):
            return 0
        earliest = now - POSTCOPY_BATCH / self._rate
        self._paid_until = max(self._paid_until, earliest) + _STRIDE / self._rate
        return _STRIDE

    def delay(self, now: float) -> float:
        """Seconds until pages may go with which no faulted one goes; 0 where they may."""
        if self._calm(now):
            return 0.0
        return max(0.0, self._paid_until + _STRIDE / self._rate - now)

    def _calm(self, now: float) -> bool:
        return now - self._last_fault > _CALM_SECONDS


class PostcopyPages:
    """The pages that are still to go, each exactly once: faulted ones first, in the order of their
    faults, then the others from the last fault on (the guest's next access is likely near it).

    Takes `bitmap` over; true is a page to send.
    """

    def __init__(self, bitmap: Bitmap) -> None:
        self._bitmap = bitmap
        self._urgent: deque[int] = deque()
        self._next = 0
        self.remaining = int(np.count_nonzero(bitmap))
        """Pages not yet in a batch, urgent ones included."""

    @property
    def urgent(self) -> int:
        """Pages that a vCPU waits for and that are in no batch yet."""
        return len(self._urgent)

    def fault(self, pfns: Pfns) -> int:
        """The guest waits for these; returns how many were still to be sent.

        Raises ValueError for a pfn that the guest cannot have.
        """
        if len(pfns) and int(pfns.max()) >= len(self._bitmap):
            raise ValueError(
                f"pfn {int(pfns.max()):#x} is above the guest's {len(self._bitmap):#x}"
            )
        new = 0
        for pfn in pfns.tolist():
            if self._bitmap[pfn]:
                self._bitmap[pfn] = False
                self._urgent.append(pfn)
                new += 1
            self._next = (pfn + 1) % len(self._bitmap)
        return new

    def batch(self, limit: int, background: int) -> Pfns:
        """The next pages: at most `limit`, of which at most `background` nobody waits for."""
        urgent = [self._urgent.popleft() for _ in range(min(limit, len(self._urgent)))]
        parts = [np.array(urgent, np.uint64)]
        room = min(limit - len(urgent), background)
        for _ in range(2):
            if room <= 0 or self.remaining == sum(map(len, parts)):
                break
            more, self._next = set_bits(self._bitmap, self._next, room)
            self._bitmap[more] = False
            self._next %= len(self._bitmap)
            parts.append(more)
            room -= len(more)
        batch = np.concatenate(parts)
        self.remaining -= len(batch)
        return batch
