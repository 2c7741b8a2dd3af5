"""The hot path: guest memory to a stream and back, without copying.

PAGE_DATA, POSTCOPY_PFNS and POSTCOPY_PAGE_DATA have the same shape: count, page list, contents. A
sender writes header, list and the mapped runs of pages with one writev; a receiver reads contents
with readv into the mapped pages.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Sequence
from itertools import accumulate, compress
from queue import SimpleQueue

from xen_save_helper.helper.engine.stream_io import (
    Buffer,
    StreamInput,
    StreamOutput,
    advance,
    take,
)
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Bitmap, Domain
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Self
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    contents_mask,
    decode_entries,
    decode_page_list_header,
    encode_entries,
    encode_page_list_header,
)
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, run_of, selected
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE as RECORD_HEADER_SIZE
from xen_save_helper.ipc_schema.streams.records import encode_record_header

MAX_BATCH_SIZE = 1024
"""Pages in a PAGE_DATA record (libxc's MAX_BATCH_SIZE, and the limit of the hypercall that queries
types)."""

_LISTED_AT_ONCE = 8 * MAX_BATCH_SIZE
"""Pages of records written at once if none has contents. A small guest has a million of them: its
special pages are below 4 GiB, and most pfns before them have no page."""

_MAX_WINDOW = 1 << 13
_SOME = 64
_FEW = 3
"""One pfn of so many, or fewer, are few."""
_ENDS_LINE = bytes.maketrans(b"\1", b"\n")

_LIST_SIZE = MAX_BATCH_SIZE * ENTRY_SIZE
"""Bytes of the entries of most records."""


def set_bits(bitmap: Bitmap, start: int, limit: int) -> tuple[Pfns, int]:
    """The first `limit` pfns set in `bitmap` from `start` on, and the pfn after the last one looked
    at: the bitmap's size if there were fewer."""
    found = pfns_of()
    size = limit  # enough if all are set
    while (start := bitmap.find(1, start)) >= 0:
        window = bitmap[start : start + size]
        count = window.count(1)
        if count == len(window):
            part = run_of(start, count)
            found = found + part if found else part
        elif _FEW * count < len(window):
            found.extend(_places_of_few(window, start))
        else:
            found.extend(compress(range(start, start + len(window)), window))
        if len(found) >= limit:
            del found[limit:]
            return found, found[-1] + 1
        start += len(window)
        # As many as are missing, if the next ones are as dense, and a few more.
        size = min((limit - len(found) + _SOME) * len(window) // count, _MAX_WINDOW)
    return found, len(bitmap)


def _places_of_few(window: Bitmap, start: int) -> Iterator[int]:
    """The pfns set in `window`, which begins with pfn `start`. Each costs what a look at three
    pfns costs otherwise: the bitmap is taken for lines, each of which ends with one."""
    lines = window.translate(_ENDS_LINE).splitlines(keepends=True)
    if not window[-1]:
        lines.pop()
    ends = accumulate(map(len, lines), initial=start - 1)
    next(ends)
    return ends


class Batch(NamedTuple):
    """Records ready to be sent: `buffers` are their bytes, `views` the mapped pages among them."""

    pfns: Pfns
    buffers: list[Buffer]
    views: list[memoryview]
    pages: int
    """How many of `pfns` have contents."""


class PageWriter:
    """Writes pages of `domain` as records."""

    def __init__(self, domain: Domain, out: StreamOutput) -> None:
        self._domain = domain
        self._out = out

    def prepare(self, record: int, pfns: Pfns, *, sparse: bool = False) -> Batch:
        """Make records of number `record`, each of MAX_BATCH_SIZE pages but for the last: query the
        pages' types and map them. `sparse`: pages of zeros are XALLOC. The batch must be
        released.

        It is for the first of `pfns` only if some have contents: those of one record, or of the
        records before the first that has contents.
        """
        types = self._domain.get_pfn_type_batch(pfns)
        mask = contents_mask(types)
        if len(pfns) > MAX_BATCH_SIZE and (first := mask.find(1)) >= 0:
            empty_records = first // MAX_BATCH_SIZE
            count = max(empty_records, 1) * MAX_BATCH_SIZE
            pfns, types, mask = pfns[:count], types[:count], mask[:count]
        while True:
            present = selected(pfns, mask)
            try:
                views = self._domain.foreign_map(present) if present else []
                break
            except OSError as error:
                # A running guest may have given a page back since; then its type says so.
                now = self._domain.get_pfn_type_batch(pfns)
                if error.errno != errno.EINVAL or now == types:
                    raise
                types = now
                mask = contents_mask(types)
        contents = views
        if sparse and views:
            contents, types = _without_zeros(views, types, mask)
            mask = contents_mask(types)
        buffers = _records(record, encode_entries(pfns, types), mask, contents)
        return Batch(pfns, buffers, views, mask.count(1) if views else 0)

    def write(self, batch: Batch) -> None:
        self._out.write(batch.buffers)

    def release(self, batch: Batch) -> None:
        self._domain.foreign_unmap(batch.views)


def _without_zeros(
    views: list[memoryview], types: bytes, mask: bytes
) -> tuple[list[memoryview], bytes]:
    """The contents of the mapped pages that are not all zeros, and the types of the batch, with
    XALLOC for those that are."""
    from xen_save_helper.helper.engine.zero_pages import find_zero_pages, without

    zero = find_zero_pages(views)
    changed = bytearray(types)
    mapped = (place for place, there in enumerate(mask) if there)
    for place in compress(mapped, zero):
        changed[place] = type_octet(PageType.XALLOC)
    return without(views, zero), bytes(changed)


def _records(record: int, entries: bytearray, mask: bytes, views: list[memoryview]) -> list[Buffer]:
    """The buffers of records with these entries. Those that `mask` says have their contents in
    `views`."""
    listed = memoryview(entries)
    contents: Sequence[Buffer] = views
    buffers: list[Buffer] = []
    start = 0
    while start < len(mask):
        if empty := _empty_records(mask, start):
            buffers.append(_without_contents(record, listed[start * ENTRY_SIZE :], empty))
            start += empty * MAX_BATCH_SIZE
            continue
        end = min(start + MAX_BATCH_SIZE, len(mask))
        size = mask.count(1, start, end) * PAGE_SIZE
        buffers.append(_header(record, end - start, size))
        buffers.append(listed[start * ENTRY_SIZE : end * ENTRY_SIZE])
        if size:
            buffers += take(contents, size)
            contents = advance(contents, size)
        start = end
    return buffers


def _empty_records(mask: bytes, start: int) -> int:
    """How many whole records from `start` on have no contents."""
    end = mask.find(1, start)
    return ((len(mask) if end < 0 else end) - start) // MAX_BATCH_SIZE


def _without_contents(record: int, listed: memoryview, count: int) -> bytes:
    """The first `count` whole records of these entries, in one piece."""
    size = MAX_BATCH_SIZE * ENTRY_SIZE
    lists = (listed[start : start + size] for start in range(0, count * size, size))
    return _header(record, MAX_BATCH_SIZE, 0).join((b"", *lists))


def _header(record: int, count: int, size: int) -> bytes:
    """What precedes `count` entries and `size` bytes of contents."""
    list_header = encode_page_list_header(count)
    length = len(list_header) + count * ENTRY_SIZE + size
    return encode_record_header(record, length) + list_header


class MapAhead:
    """The batches of a round, one of them prepared while another is written: finding and mapping
    the pages takes about a third of the time. A batch with contents is one record.

    A thread walks `dirty` from start to end; bits behind it may be cleared. The domain belongs to
    that thread while the context lasts. It unmaps the pages that were sent, too: an unmapping in
    another thread would wait until it has mapped what it is at. All batches are released at the
    context's end.
    """

    _DEPTH = 2
    """Batches that are prepared, or being written: one of each."""

    def __init__(
        self,
        pages: PageWriter,
        record: int,
        dirty: Bitmap,
        *,
        sparse: bool = False,
    ) -> None:
        self._pages = pages
        self._record = record
        self._dirty = dirty
        self._sparse = sparse
        self._stopping = False
        self._room: SimpleQueue[Batch | None] = SimpleQueue()
        """For each batch to prepare, one to be released first."""
        self._ready: SimpleQueue[Batch | Exception | None] = SimpleQueue()
        self._next: Batch | None = None
        self._thread = threading.Thread(target=self._prepare_all, name="map ahead")

    def __enter__(self) -> Self:
        for _ in range(self._DEPTH):
            self._room.put(None)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stopping = True
        self._room.put(None)
        self._thread.join()
        left: list[Batch | Exception | None] = [self._next]
        for queue in (self._ready, self._room):
            while not queue.empty():
                left.append(queue.get())
        for batch in left:
            if isinstance(batch, Batch):
                self._pages.release(batch)

    def more(self) -> bool:
        """Wait for the next batch; False after the last. Raises the exception that preparing it
        raised."""
        if self._next is None:
            upcoming = self._ready.get()
            if isinstance(upcoming, Exception):
                raise upcoming
            self._next = upcoming
        return self._next is not None

    def send(self) -> Batch:
        """Write the batch that `more` waited for."""
        assert self._next is not None
        batch, self._next = self._next, None
        try:
            self._pages.write(batch)
        finally:
            self._room.put(batch)
        return batch

    def _prepare_all(self) -> None:
        try:
            position, at_once = 0, MAX_BATCH_SIZE
            while True:
                pfns, _position = set_bits(self._dirty, position, at_once)
                if not pfns:
                    break
                if (sent := self._room.get()) is not None:
                    self._pages.release(sent)
                if self._stopping:
                    break
                batch = self._pages.prepare(self._record, pfns, sparse=self._sparse)
                position = batch.pfns[-1] + 1
                at_once = MAX_BATCH_SIZE if batch.pages else _LISTED_AT_ONCE
                self._ready.put(batch)
        except Exception as error:
            self._ready.put(error)
        else:
            self._ready.put(None)


def read_page_list(reader: StreamInput, length: int, what: str) -> tuple[Pfns, bytes, int]:
    """Read the page list of a record with contents whose body has `length` bytes: pfns, types, and
    how many pages of contents follow. Raises DecodeError if list and length do not agree."""
    start = reader.offset
    if length < HEADER_SIZE + ENTRY_SIZE:
        raise DecodeError(what, start, f"{length} bytes are too short for a page list")
    # All of the list, as a rule. If that is all of the record, another's header follows; if not,
    # contents do, which are to go to the domain's memory and nowhere else.
    rest = length - HEADER_SIZE
    ahead = _LIST_SIZE if rest > _LIST_SIZE else rest + RECORD_HEADER_SIZE
    count = decode_page_list_header(reader.read(HEADER_SIZE, what, ahead), what, start)
    if HEADER_SIZE + count * ENTRY_SIZE > length:
        raise DecodeError(what, start, f"{length} bytes are too short for a list of {count} pfns")
    entries = reader.read(count * ENTRY_SIZE, what)
    pfns, types = decode_entries(entries, what, start + HEADER_SIZE)
    pages = contents_mask(types).count(1)
    expected = HEADER_SIZE + count * ENTRY_SIZE + pages * PAGE_SIZE
    if length != expected:
        raise DecodeError(
            what,
            start,
            f"{length} bytes, but {count} pfns, {pages} of them with contents, take {expected}",
        )
    return pfns, types, pages
