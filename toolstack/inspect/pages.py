"""The page lists of an inspected stream's records: lists are read, contents skipped."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import page_lists
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.libxc_records import WITH_CONTENTS
from xen_save_helper.ipc_schema.streams.page_lists import contents_mask
from xen_save_helper.ipc_schema.streams.page_types import type_of_octet
from xen_save_helper.toolstack.inspect.source import Source
from xen_save_helper.toolstack.inspect.summary import Summary

PAGE_SIZE: Final = 4096
PAGE_LISTS: Final = WITH_CONTENTS | {RecordType.POSTCOPY_PFNS}
"""The records that `read_pages` takes."""

_LIST_CHUNK: Final = 1 << 16
"""Entries that are processed together: a list can be as long as a record, 128 MiB."""


def read_pages(source: Source, kind: RecordType, length: int, summary: Summary) -> dict[str, Any]:
    """Read a record's body of `length` bytes from `source` into `summary`; returns its entry's
    summary. Raises DecodeError."""
    what = f"libxc {kind.name}"
    start = source.offset
    header = source.read(page_lists.HEADER_SIZE, what)
    count = page_lists.decode_page_list_header(header, what, start)
    listed = page_lists.HEADER_SIZE + count * page_lists.ENTRY_SIZE
    if listed > length:
        room = (length - page_lists.HEADER_SIZE) // page_lists.ENTRY_SIZE
        raise DecodeError(f"{what} count", start, f"{count} pfns, want at most {room} in {length}")
    types: Counter[str] = Counter()
    lowest, highest, present = page_lists.MAX_PFN, 0, 0
    for first in range(0, count, _LIST_CHUNK):
        place = source.offset
        size = min(count - first, _LIST_CHUNK) * page_lists.ENTRY_SIZE
        pfns, chunk = page_lists.decode_entries(source.read(size, f"{what} pfns"), what, place)
        if kind is RecordType.POSTCOPY_PAGE_DATA:
            _check_all_present(chunk, first, what, place)
        if not first:
            summary.begin_page_data(kind, pfns[0])
        with_contents = contents_mask(chunk)
        summary.add_pages(kind, pfns, with_contents)
        types += _count_types(chunk)
        present += with_contents.count(1)
        ends = min(pfns), max(pfns)
        lowest, highest = min(lowest, ends[0]), max(highest, ends[1])
    contents = present * PAGE_SIZE if kind in WITH_CONTENTS else 0
    if length != listed + contents:
        raise DecodeError(
            f"{what} length",
            start - 4,
            f"body of {length} bytes, want {listed + contents} for {count} pfns, {present} of "
            "them with contents",
        )
    source.skip(contents, f"{what} contents")
    entry: dict[str, Any] = {"pages": count, "types": dict(types)}
    entry |= {"lowest_pfn": lowest, "highest_pfn": highest}
    if kind is RecordType.PAGE_DATA:
        entry["round"] = summary.rounds
    return entry


def _count_types(types: bytes) -> Counter[str]:
    return Counter({type_of_octet(octet).name: types.count(octet) for octet in sorted(set(types))})


def _check_all_present(types: bytes, first: int, what: str, offset: int) -> None:
    """After the transition only pages with contents are sent (process_postcopy_page_data)."""
    index = contents_mask(types).find(0)
    if index >= 0:
        raise DecodeError(
            f"{what} pfn[{first + index}]",
            offset + index * page_lists.ENTRY_SIZE,
            f"type {type_of_octet(types[index]).name}, want one with contents",
        )
