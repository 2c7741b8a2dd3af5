"""The hot path: guest memory into a stream and out of it, without a copy of ours between.

PAGE_DATA, POSTCOPY_PFNS and POSTCOPY_PAGE_DATA have one shape: count, page list, contents. A
sender writes header, list and the mapped runs of pages with one writev; a receiver reads contents
with readv into the mapped pages.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from helper.hypervisors.interface import PAGE_SIZE, Bitmap, Domain, Pfns
from helper.stream_io import StreamReader, StreamWriter
from ipc_schema.errors import DecodeError
from ipc_schema.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    contents_mask,
    decode_entries,
    decode_page_list_header,
    encode_page_list,
)
from ipc_schema.records import encode_record_header

MAX_BATCH_SIZE = 1024
"""Pages of a PAGE_DATA record (MAX_BATCH_SIZE, and the limit of the type query's hypercall)."""

_WINDOW = 1 << 14


def set_bits(bitmap: Bitmap, start: int, limit: int) -> tuple[Pfns, int]:
    """The first `limit` set pfns of `bitmap` from `start` on, and the pfn after the last that was
    looked at: the bitmap's size where there were fewer."""
    found: list[Pfns] = []
    count = 0
    while start < len(bitmap):
        window = np.flatnonzero(bitmap[start : start + _WINDOW])[: limit - count]
        if len(window):
            found.append((window + start).astype(np.uint64))
            count += len(window)
        if count == limit:
            return np.concatenate(found), int(found[-1][-1]) + 1
        start += _WINDOW
    empty = np.empty(0, np.uint64)
    return (np.concatenate(found) if found else empty), len(bitmap)


class PageWriter:
    """Writes pages of `domain` as records."""

    def __init__(self, domain: Domain, out: StreamWriter) -> None:
        self._domain = domain
        self._out = out

    def write(self, record: int, pfns: Pfns, *, paced: bool = True) -> int:
        """A record of number `record` with these pages and their types; returns how many of them
        had contents. At most MAX_BATCH_SIZE pfns."""
        types = self._domain.get_pfn_type_batch(pfns)
        mask = contents_mask(types)
        present = pfns if mask.all() else pfns[mask]
        listed = encode_page_list(pfns, types)
        head = encode_record_header(record, len(listed) + len(present) * PAGE_SIZE) + listed
        views = self._domain.foreign_map(present) if len(present) else []
        try:
            if paced:
                self._out.write([head, *views])
            else:
                self._out.write_now([head, *views])
        finally:
            self._domain.foreign_unmap(views)
        return len(present)


def read_page_list(
    reader: StreamReader, length: int, what: str
) -> tuple[Pfns, NDArray[np.uint32], int]:
    """The page list of a record with contents whose body is `length` octets: pfns, types, and how
    many pages of contents follow. Raises DecodeError where list and length do not agree."""
    start = reader.offset
    if length < HEADER_SIZE + ENTRY_SIZE:
        raise DecodeError(what, start, f"{length} octets are too short for a page list")
    count = decode_page_list_header(reader.read(HEADER_SIZE, what), what, start)
    if HEADER_SIZE + count * ENTRY_SIZE > length:
        raise DecodeError(what, start, f"{length} octets are too short for a list of {count} pfns")
    entries = reader.read(count * ENTRY_SIZE, what)
    pfns, types = decode_entries(entries, what, start + HEADER_SIZE)
    pages = int(np.count_nonzero(contents_mask(types)))
    expected = HEADER_SIZE + count * ENTRY_SIZE + pages * PAGE_SIZE
    if length != expected:
        raise DecodeError(
            what,
            start,
            f"{length} octets, but {count} pfns, {pages} of them with contents, take {expected}",
        )
    return pfns, types, pages
