"""Which page a postcopy sender sends next. No I/O: faults in, pages out."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.streams.pfns import Pfns, runs_of

POSTCOPY_BATCH = 16
"""Background pages in a POSTCOPY_PAGE_DATA record: few, since a fault has to wait for the current
record."""

PREFETCH_AROUND_FAULTS = True
"""Whether background pages continue after the last fault: the guest's next access is likely near
it. Not a setting: the benchmarks show what it is worth."""


class PostcopyPages:
    """The pages still to be sent, each exactly once: faulted ones first, in the order of their
    faults, then the others from the last fault on (see PREFETCH_AROUND_FAULTS).

    Takes over `bitmap`, in which 1 is a page to send.
    """

    def __init__(self, bitmap: Bitmap) -> None:
        self._bitmap = bitmap
        self._urgent: deque[int] = deque()
        self._next = 0
        self.remaining = bitmap.count(1)
        """Pages that have not been taken, urgent ones included."""

    @property
    def urgent(self) -> int:
        """Pages that a vCPU waits for and that have not been taken."""
        return len(self._urgent)

    def fault(self, pfns: Sequence[int]) -> int:
        """Note that the guest waits for `pfns`; returns how many of them were still to be sent.

        Raises ValueError for a pfn that the guest cannot have.
        """
        bitmap = self._bitmap
        new = 0
        for pfn in pfns:
            if pfn >= len(bitmap):
                raise ValueError(f"pfn {pfn:#x} is above the guest's {len(bitmap):#x}")
            if bitmap[pfn]:
                bitmap[pfn] = 0
                self._urgent.append(pfn)
                new += 1
            if PREFETCH_AROUND_FAULTS:
                self._next = (pfn + 1) % len(bitmap)
        return new

    def take_urgent(self) -> int:
        """Take the page that a vCPU has waited for longest."""
        self.remaining -= 1
        return self._urgent.popleft()

    def take_background(self, limit: int = POSTCOPY_BATCH) -> Pfns:
        """Take the next pages that nobody waits for, at most `limit`."""
        pfns, self._next = set_bits(self._bitmap, self._next, limit)
        if not pfns:
            pfns, self._next = set_bits(self._bitmap, 0, limit)
        self._next %= len(self._bitmap)
        for first, count, _ in runs_of(pfns):
            self._bitmap[first : first + count] = bytes(count)
        self.remaining -= len(pfns)
        return pfns
