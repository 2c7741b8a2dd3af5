"""How long vCPUs waited for missing pages, told in the trace a few times a second."""

from __future__ import annotations

import time

from xen_save_helper.helper.channels.reporter import Reporter

_SECONDS = 0.1
"""Between two lines, at least."""


class FaultLatencies:
    """Counts latencies in classes whose upper bounds are powers of 2 in microseconds, so that a
    fault costs an addition."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._begin(time.monotonic())

    def _begin(self, now: float) -> None:
        self._classes: list[int] = []
        self._longest = 0.0
        self._next = now + _SECONDS

    def add(self, since: float, missing: int) -> None:
        """Count a fault since `since` (time.monotonic) whose page is in place now, while `missing`
        pages are still to come."""
        now = time.monotonic()
        seconds = now - since
        number = int(seconds * 1e6).bit_length()
        if number >= len(self._classes):
            self._classes += [0] * (number + 1 - len(self._classes))
        self._classes[number] += 1
        self._longest = max(self._longest, seconds)
        if now >= self._next:
            self.tell(missing)

    def tell(self, missing: int) -> None:
        """Tell what was counted since the last time, if anything."""
        if self._classes:
            self._reporter.event(
                "postcopy_faults",
                faults=sum(self._classes),
                latencies=self._classes,
                longest=round(self._longest, 6),
                missing=missing,
            )
        self._begin(time.monotonic())
