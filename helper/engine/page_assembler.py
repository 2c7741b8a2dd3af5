"""Assembles POSTCOPY_PAGE_DATA records as they trickle in: pages are ready as soon as they are
whole.

No I/O: it says where the next bytes go and is told how many came. A vCPU may wait for the first
page of a record, so that page must not wait for the others.
"""

from __future__ import annotations

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_type
from xen_save_helper.ipc_schema.streams.page_lists import (
    ENTRY_SIZE,
    decode_page_list_header,
    decode_pfns,
)
from xen_save_helper.ipc_schema.streams.page_lists import HEADER_SIZE as LIST_HEADER_SIZE
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, decode_record_header

RING = 128
"""Pages held at a time: as many as can be on the way ahead of a page that a vCPU waits for, so that
it can be reached before the others are loaded."""

_NO_PAGE = -1


class PageAssembler:
    """`offset` is that of the next byte in the stream. Pages are held until they are taken; their
    contents are valid until the next read."""

    def __init__(self, version: int, offset: int) -> None:
        self.ended = False
        """The END record has been read: nothing more belongs to this stream."""
        self._version = version
        self._offset = offset
        self._header = bytearray(HEADER_SIZE)
        self._header_filled = 0
        self._list = bytearray()
        self._list_filled = 0
        self._pfns: list[int] = []
        self._count = 0
        """Pages in the current record; 0 between records."""
        self._arrived = 0
        """How many of them are whole."""
        self._ring = memoryview(bytearray(RING * PAGE_SIZE))
        self._place = 0
        """The place of the next page in the ring."""
        self._partial = 0
        """Bytes of that page which have arrived."""
        self._held = [_NO_PAGE] * RING
        """The pfn of the page at each place in the ring."""
        self._oldest = 0
        """The first place in use."""
        self._used = 0

    @property
    def room(self) -> int:
        """Pages that can arrive before one has to be taken."""
        return RING - self._used

    @property
    def held(self) -> int:
        """Pages that have arrived and whose place is not free yet."""
        return self._used

    def take(self, pfn: int) -> memoryview | None:
        """Take a page out of turn; None if it is not held."""
        try:
            place = self._held.index(pfn)
        except ValueError:
            return None
        self._held[place] = _NO_PAGE
        return self._contents(place, 1)

    def take_oldest(self, limit: int) -> tuple[int, memoryview] | None:
        """Take the oldest page and its neighbours, at most `limit`: the first pfn, and the
        contents. None if all pages have been taken."""
        first, pages, place = _NO_PAGE, 0, self._oldest
        while self._used and pages < limit:
            at = self._oldest
            pfn = self._held[at]
            if pages and (pfn != first + pages or not at):
                break
            if pfn != _NO_PAGE:
                if not pages:
                    first, place = pfn, at
                pages += 1
                self._held[at] = _NO_PAGE
            self._oldest = (at + 1) % RING
            self._used -= 1
        return (first, self._contents(place, pages)) if pages else None

    def _contents(self, place: int, pages: int) -> memoryview:
        return self._ring[place * PAGE_SIZE : (place + pages) * PAGE_SIZE]

    def views(self) -> list[memoryview]:
        """Buffers for the next bytes of the stream, in order, never beyond the header after the
        current record. To be called only if there is `room`."""
        if not self._count:
            return [memoryview(self._header)[self._header_filled :]]
        views = []
        if self._list_filled < len(self._list):
            views.append(memoryview(self._list)[self._list_filled :])
        pages = self._piece()
        start = self._place * PAGE_SIZE
        views.append(self._ring[start + self._partial : start + pages * PAGE_SIZE])
        if pages == self._count - self._arrived:
            views.append(memoryview(self._header))  # another record must follow: END, at least
        return views

    def _piece(self) -> int:
        """Pages of this record that can be read in one piece."""
        return min(self._count - self._arrived, RING - self._place, self.room)

    def filled(self, size: int) -> list[int]:
        """Note that `size` bytes went into `views`; returns the pfns of the pages that became
        whole, which are held from now on.

        Raises DecodeError for anything but POSTCOPY_PAGE_DATA, END and unknown optional records
        without a body.
        """
        self._offset += size
        pfns: list[int] = []
        if self._count:
            part = min(size, len(self._list) - self._list_filled)
            if part:
                self._list_filled += part
                size -= part
                if self._list_filled == len(self._list):
                    self._read_list(self._offset - size)
            part = min(size, self._piece() * PAGE_SIZE - self._partial)
            size -= part
            whole, self._partial = divmod(self._partial + part, PAGE_SIZE)
            if whole:
                pfns = self._pfns[self._arrived : self._arrived + whole]
                self._held[self._place : self._place + whole] = pfns
                self._used += whole
                self._arrived += whole
                self._place = (self._place + whole) % RING
            if self._arrived == self._count:
                self._count = 0
                self._header_filled = 0
        if not self._count and size:
            self._header_filled += size
            if self._header_filled == HEADER_SIZE:
                self._read_header()
        return pfns

    def _read_header(self) -> None:
        start = self._offset - HEADER_SIZE
        number, length = decode_record_header(bytes(self._header), "record header", start)
        kind = record_type(number, self._version, start)
        self._header_filled = 0
        if kind is RecordType.POSTCOPY_PAGE_DATA:
            self._begin_pages(length, start)
        elif length:
            name = "unknown optional record" if kind is None else kind.name
            raise DecodeError(name, start, f"{length} bytes may not come among postcopy pages")
        elif kind is RecordType.END:
            self.ended = True
        elif kind is not None:
            raise DecodeError(kind.name, start, "may not come among postcopy pages")

    def _begin_pages(self, length: int, start: int) -> None:
        # Every page listed has contents, so the length alone tells how many there are.
        count, rest = divmod(length - LIST_HEADER_SIZE, ENTRY_SIZE + PAGE_SIZE)
        if count < 1 or rest:
            raise DecodeError(
                "POSTCOPY_PAGE_DATA", start, f"{length} bytes are not a whole number of pages"
            )
        self._count = count
        self._list = bytearray(LIST_HEADER_SIZE + count * ENTRY_SIZE)
        self._list_filled = 0
        self._arrived = 0

    def _read_list(self, end: int) -> None:
        start = end - len(self._list)
        what = "POSTCOPY_PAGE_DATA"
        data = bytes(self._list)
        count = decode_page_list_header(data[:LIST_HEADER_SIZE], what, start)
        if count != self._count:
            raise DecodeError(what, start, f"{count} pfns, but bytes for {self._count} pages")
        self._pfns = decode_pfns(data[LIST_HEADER_SIZE:], what, start + LIST_HEADER_SIZE)
