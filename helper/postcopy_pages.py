"""Which page a postcopy sender sends next. No I/O: faults in, batches out."""

from __future__ import annotations

from collections import deque

import numpy as np

from helper.hypervisors.interface import Bitmap, Pfns
from helper.page_stream import set_bits


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
