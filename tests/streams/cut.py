"""Cut a real migration stream down to a size for a repository.

    python -m tests.streams.cut WHOLE.xl.xz CUT.xl.xz

A cut is a whole, well-formed stream: all headers, all records without pages and what follows END
as they are, and small PAGE_DATA records made of the whole's. Of each round these have the pages
that the whole sent most often, so that a live stream's cut has rounds and repeats, and the first
few pages of each type.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import compress
from pathlib import Path
from typing import IO

from xen_save_helper.ipc_schema.streams import page_lists
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.page_lists import ENTRY_SIZE, contents_mask
from xen_save_helper.ipc_schema.streams.pfns import Pfns, selected
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, encode_record_header, padding
from xen_save_helper.toolstack.inspect.walk import StreamEntry, inspect

PAGE_SIZE = 4096
MOST_SENT = 5
"""Pages that are kept in every round that has them."""
PER_TYPE = 2
"""Pages of each type that are kept in every round."""


def main(whole_path: Path, cut_path: Path) -> None:
    """Write the cut of the stream in `whole_path`, both xz-compressed."""
    with tempfile.TemporaryFile() as whole:
        with lzma.open(whole_path) as packed:
            while block := packed.read(1 << 24):
                whole.write(block)
        whole.seek(0)
        entries = list(inspect(whole))
        followed = most_sent(whole, entries)
        with lzma.open(cut_path, "wb", preset=9) as cut:
            for piece in pieces(whole, entries, followed):
                cut.write(piece)


def most_sent(whole: IO[bytes], entries: list[StreamEntry]) -> set[int]:
    """The pfns that came with contents most often."""
    sent: Counter[int] = Counter()
    for entry in entries:
        if entry.name == "PAGE_DATA":
            pfns, types = page_list(whole, entry)
            sent.update(selected(pfns, contents_mask(types)))
    return {pfn for pfn, _times in sent.most_common(MOST_SENT)}


def pieces(whole: IO[bytes], entries: list[StreamEntry], followed: set[int]) -> Iterator[bytes]:
    """The octets of the cut."""
    kept: Counter[tuple[int, int]] = Counter()
    for entry in entries:
        if entry.name == "PAGE_DATA":
            yield cut_pages(whole, entry, followed, kept)
            continue
        size = entry.length
        if not entry.name.endswith("HEADER") and entry.name != "TRAILING":
            size += HEADER_SIZE + padding(entry.length)
        whole.seek(entry.offset)
        yield whole.read(size)


def cut_pages(
    whole: IO[bytes],
    entry: StreamEntry,
    followed: set[int],
    kept: Counter[tuple[int, int]],
) -> bytes:
    """A smaller PAGE_DATA record in the place of `entry`'s; nothing where no page of it stays.

    `kept` counts the pages by round and type.
    """
    pfns, types = page_list(whole, entry)
    mask = contents_mask(types)
    chosen = bytearray()
    for pfn, octet, there in zip(pfns, types, mask, strict=True):
        place = (entry.summary["round"], octet)
        by_name = bool(there) and pfn in followed
        by_type = not by_name and kept[place] < PER_TYPE
        kept[place] += by_type
        chosen.append(by_name or by_type)
    if not any(chosen):
        return b""
    contents = entry.offset + HEADER_SIZE + page_lists.HEADER_SIZE + len(pfns) * ENTRY_SIZE
    listed = selected(pfns, chosen), bytes(compress(types, chosen))
    record = bytearray(page_lists.encode_page_list(*listed))
    for place, wanted in enumerate(compress(chosen, mask)):
        if wanted:
            whole.seek(contents + place * PAGE_SIZE)
            record += whole.read(PAGE_SIZE)
    return encode_record_header(RecordType.PAGE_DATA, len(record)) + bytes(record)


def page_list(whole: IO[bytes], entry: StreamEntry) -> tuple[Pfns, bytes]:
    """pfns and types of a PAGE_DATA record."""
    whole.seek(entry.offset + HEADER_SIZE)
    count = page_lists.decode_page_list_header(whole.read(8), entry.name, entry.offset)
    listed = whole.read(count * page_lists.ENTRY_SIZE)
    return page_lists.decode_entries(listed, entry.name, entry.offset)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
