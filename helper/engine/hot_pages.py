"""Which of the pages that are left behind the guest will want first: those that it has written
again and again.

A page that the guest waits for at the destination costs it a round trip. The same page costs less
while the guest is suspended anyway, as part of a stream. So the hottest pages are sent ahead, as
many as the rounds' rate can move within the downtime that the caller admits.
"""

from __future__ import annotations

from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of

_HOT: Final = 2
"""A page is hot if it was dirty at least as often as this when the dirty bitmap was read."""
_MOST: Final = 255
"""Readings that are counted, in a byte for each page."""
_ALL_ONES: Final = bytes([0]) + bytes([_MOST]) * 255
_COUNTED_AT_ONCE: Final = 1 << 14

_MEASURABLE: Final = 256
"""Pages that a round must have sent to tell a rate: fewer may all fit in a socket's buffer."""


class Choice(NamedTuple):
    pfns: Pfns
    """The hottest first."""
    hot: int
    """Hot pages that are left."""
    room: int
    """Pages that can be sent within the downtime."""
    pages_per_second: float | None
    """The rate of the last round that was long enough to tell; None if none was."""


class HotPages:
    """Counts how often each page of a domain was dirty, and measures how fast pages are sent."""

    def __init__(self, p2m_size: int) -> None:
        self._times = bytearray(p2m_size)
        self._readings = 0
        self._rate: float | None = None

    def read(self, dirty: Bitmap) -> None:
        """The dirty bitmap has been read."""
        if self._readings == _MOST:
            return
        self._readings += 1
        start = 0
        while (start := dirty.find(1, start)) >= 0:
            part = slice(start, start + _COUNTED_AT_ONCE)
            counted = self._times[part]
            # No byte overflows into the next one: there are not that many readings.
            both = int.from_bytes(counted, "little") + int.from_bytes(dirty[part], "little")
            self._times[part] = both.to_bytes(len(counted), "little")
            start += _COUNTED_AT_ONCE

    def sent(self, pages: int, seconds: float) -> None:
        """A round has sent so many pages with contents."""
        if pages >= _MEASURABLE and seconds > 0:
            self._rate = pages / seconds

    def choose(self, left: Bitmap, others: int, max_downtime_ms: int) -> Choice:
        """The hottest pages of `left` (of two that are equally hot, the lower pfn) that can be sent
        within the downtime, beside `others` that must be."""
        room = max(0, int((self._rate or 0.0) * max_downtime_ms / 1000) - others)
        # All ones where a page is left: without numpy, which takes longer to load than this takes.
        mask = int.from_bytes(left.translate(_ALL_ONES), "little")
        times = (int.from_bytes(self._times, "little") & mask).to_bytes(len(left), "little")
        hottest = pfns_of()
        for heat in sorted(set(times), reverse=True):
            pfn = times.find(heat)
            while heat >= _HOT and pfn >= 0 and len(hottest) < room:
                hottest.append(pfn)
                pfn = times.find(heat, pfn + 1)
        hot = len(times) - sum(times.count(heat) for heat in range(_HOT))
        return Choice(hottest, hot, room, self._rate)
