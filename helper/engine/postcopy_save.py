"""The sender's side of postcopy, from the list of pages to the receiver's last record
(send_postcopy_pfns and postcopy_domain_memory of the postcopy series)."""

from __future__ import annotations

import errno
import select
import struct
import time
from collections.abc import Callable

from xen_save_helper.helper.engine.bitmaps import add, intersection, without
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.fault_channel import FaultReader, carry_at_once
from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.engine.postcopy_pages import POSTCOPY_BATCH, PostcopyPages
from xen_save_helper.helper.engine.save_phases import Outcome
from xen_save_helper.helper.engine.stream_io import BusyPoll, StreamOutput, check_reader, wait_for
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Bitmap, Domain, PageSource
from xen_save_helper.helper.job import PostcopyProgress
from xen_save_helper.ipc_schema.board import Word
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    MAX_PFNS_PER_RECORD,
    empty_mask,
    encode_page_list,
    encode_pfns,
)
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, selected
from xen_save_helper.ipc_schema.streams.records import encode_record_header

_BUSY_SECONDS = 0.0005
"""How soon the next fault is expected after one."""

_LARGEST_BATCH = 64
_BATCH_SECONDS = 0.0002
"""How long a record of background pages may take to write: a fault has to wait for it."""

_LISTED_AT_ONCE = 1 << 14
_FEW = 1024
"""Pages that are not worth another pass while the guest runs."""
_LOOK_SECONDS = 0.2


class PostcopySender:
    """The phases POSTCOPY_PFNS_AHEAD, POSTCOPY_PFNS, POSTCOPY_PAGES and POSTCOPY_DRAIN of a save.

    `listed` counts the entries of all POSTCOPY_PFNS.
    """

    def __init__(self, source: PageSource, out: StreamOutput, environment: Environment) -> None:
        self._source = source
        self._out = out
        self._page_server = environment.page_server
        job = environment.job
        self._reporter = environment.reporter
        self._abort = environment.abort
        self._statistics = environment.statistics
        self._board = environment.reporter.board
        self._recv_fd = job.request.back_fd
        self._stall_limit = job.stall_limit
        self._faults: FaultReader | None = None
        self._to_answer = 0
        """Records that went ahead."""
        self._ahead = Bitmap()
        """What has been listed, and has contents, while the guest was running."""
        self.listed = 0

    def send_pfns_ahead(self, domain: Domain, gather: Callable[[], Bitmap]) -> Outcome:
        """List what is left while the guest is running, so that the receiver has evicted it before
        the guest is suspended. `gather` reads what is left by now. What the guest writes in the
        meantime is listed in another pass, as long as that is much less each time."""
        self._write_header(RecordType.POSTCOPY_PFNS_BEGIN, 0)
        self._await_ready()
        worth_it = None
        while True:
            left = gather()
            if not len(self._ahead):
                self._ahead = Bitmap(len(left))
            new = without(left, self._ahead)
            count = new.count(1)
            if not count or (worth_it is not None and not _FEW < count <= worth_it):
                return Outcome.DONE
            worth_it = count // 2
            began = time.monotonic()
            holes = self._list(domain, new, self._await_ready)
            for pfn in holes:
                left[pfn] = 0
            add(new, self._ahead)
            if self._page_server is not None:
                self._page_server.map(new)
            seconds = round(time.monotonic() - began, 6)
            self._reporter.event("postcopy_pfns_ahead", pages=count, seconds=seconds)

    def send_pfns(self, domain: Domain, dirty: Bitmap, written: Bitmap) -> Outcome:
        """List the pages of `dirty` that have not been listed, with their types in `domain`, which
        is suspended, and take it over. Pages without contents drop out of it. `written` is what the
        guest has written since the last list went ahead."""
        new = Bitmap(dirty)
        if len(self._ahead):
            new = without(dirty, self._ahead)
            may_be_gone = intersection(dirty, self._ahead)
            if self._page_server is not None:
                # It has mapped those that were not written since, whatever has become of them.
                may_be_gone = intersection(may_be_gone, written)
            for pfn in self._without_contents(domain, may_be_gone):
                new[pfn] = 1
        self._write_header(RecordType.POSTCOPY_PFNS_BEGIN, 0)
        for pfn in self._list(domain, new):
            dirty[pfn] = 0
        self.left = dirty
        self.take_over(dirty)
        self._reporter.detail(f"{self._total} pages are left to postcopy")
        self._reporter.event("postcopy_pfns", pages=self._total)
        return Outcome.DONE

    def to_map(self, written: Bitmap) -> Bitmap:
        """Of what is left, the pages that a page server has not mapped; and of those that it has,
        the ones that the guest has written since: it may have given such a page back, and got
        another in its place."""
        pages = intersection(self.left, written)
        add(without(self.left, self._ahead), pages)
        return pages

    def _list(
        self, domain: Domain, pages: Bitmap, after_each: Callable[[], None] | None = None
    ) -> Pfns:
        """List `pages`, with their types; `after_each` follows each record. Those without contents,
        which are returned, are done with once they are listed, and drop out of it."""
        left = pages.count(1)
        self.listed += left
        position = 0
        empty = pfns_of()
        while left:
            count = min(left, MAX_PFNS_PER_RECORD)
            self._write_header(RecordType.POSTCOPY_PFNS, HEADER_SIZE + count * ENTRY_SIZE)
            self._out.write([struct.pack("<II", count, 0)])
            left -= count
            while count:
                pfns, position = set_bits(pages, position, min(count, _LISTED_AT_ONCE))
                types = domain.get_pfn_type_batch(pfns)
                self._out.write([memoryview(encode_page_list(pfns, types))[HEADER_SIZE:]])
                empty += selected(pfns, empty_mask(types))
                count -= len(pfns)
            if after_each is not None:
                after_each()
        for pfn in empty:
            pages[pfn] = 0
        return empty

    def _without_contents(self, domain: Domain, pages: Bitmap) -> Pfns:
        empty, position = pfns_of(), 0
        while True:
            pfns, position = set_bits(pages, position, _LISTED_AT_ONCE)
            if not pfns:
                return empty
            empty += selected(pfns, empty_mask(domain.get_pfn_type_batch(pfns)))

    def _await_ready(self) -> None:
        """Wait until the receiver is ready to go on; the guest runs meanwhile."""
        self._abort.idle()
        if self._page_server is not None:
            patience = Patience(self._stall_limit, time.monotonic())
            while not self._page_server.is_ready(_LOOK_SECONDS):
                self._abort.check()
                self._abort.alive()
                check_reader(self._out.fd, "the receiver, which was to get ready")
                if patience.look(time.monotonic()):
                    what = f"the receiver was not ready within {self._stall_limit:g} s"
                    raise OSError(errno.ETIMEDOUT, what)
            return
        faults = self._fault_reader()
        self._to_answer += 1
        while faults.ready < self._to_answer:
            what = "back channel, waiting for POSTCOPY_READY"
            wait_for(self._recv_fd, select.POLLIN, self._abort, self._stall_limit, what)
            if faults.take() or faults.complete:
                raise OSError(errno.EPROTO, f"{what}: the guest is still here")

    def _fault_reader(self) -> FaultReader:
        if self._faults is None:
            self._faults = FaultReader(self._recv_fd, VERSION)
        return self._faults

    def take_over(self, left: Bitmap) -> None:
        """The pages of `left`, which have been listed, are to be sent."""
        self._pages = PostcopyPages(left)
        self._p2m_size = len(left)
        self._total = self._pages.remaining
        self._board.ints[Word.POSTCOPY_TOTAL] = self._total
        self._board.ints[Word.POSTCOPY_LEFT] = self._total

    def progress(self) -> PostcopyProgress:
        """How far it is. From any thread."""
        return PostcopyProgress(
            self._total, self._pages.remaining, self._statistics.postcopy_faults
        )

    def send_pages(self) -> Outcome:
        """Send every page once, those that the guest waits for first.

        Returns COMPLETE if the receiver had all it needs before the last page was sent.
        """
        faults = self._fault_reader()
        faults.p2m_size = self._p2m_size
        self._record = record_number(RecordType.POSTCOPY_PAGE_DATA, VERSION)
        self._calm = BusyPoll(_BUSY_SECONDS)
        self._batch = POSTCOPY_BATCH
        self._stream = select.poll()
        for poll in (self._calm, self._stream):
            poll.register(self._recv_fd, select.POLLIN)
            poll.register(self._abort.fileno(), select.POLLIN)
        both = select.POLLIN if self._out.fd == self._recv_fd else 0
        self._stream.register(self._out.fd, select.POLLOUT | both)
        carry_at_once(self._out.fd)
        pages = self._pages
        while pages.remaining:
            if pages.urgent:
                self._send(pfns_of([pages.take_urgent()]))
                # Right after a faulted page others hold nobody up: the guest runs now.
                background = not pages.urgent and not self._out.delay() and self._look(0)
            else:
                background = self._wait()
            if background and pages.remaining:
                self._send_background()
            self._take_faults()
            if faults.complete and pages.remaining:
                self._reporter.detail(f"the receiver needs none of {pages.remaining} pages")
                return Outcome.COMPLETE
        return Outcome.DONE

    def _wait(self) -> bool:
        """Wait for a fault, or (returning True) until background pages may be sent: they are due,
        no fault is expected, and the stream takes them.

        The abort watcher's stall clock ends a wait for the stream.
        """
        quiet = self._out.patience()
        if self._out.paced:
            quiet = max(quiet, self._calm.busy)
        if quiet:
            faults = self._calm.poll(quiet)
            self._abort.progress()
            if faults or self._out.delay():
                return False
        return self._look(None)

    def _look(self, milliseconds: int | None) -> bool:
        """Whether the stream takes pages and no fault has arrived."""
        ready = self._stream.poll(milliseconds)
        self._abort.check()
        return bool(ready) and not any(events & select.POLLIN for _fd, events in ready)

    def _send_background(self) -> None:
        """Send a record of pages that nobody waits for: a small one if the stream has a pace, which
        leaves time, or takes larger ones slowly. Else a large one costs less, and brings what the
        guest would fault for."""
        count = POSTCOPY_BATCH if self._out.paced else self._batch
        began = time.monotonic()
        self._send(self._pages.take_background(count))
        slow = time.monotonic() - began > _BATCH_SECONDS
        self._batch = POSTCOPY_BATCH if slow else min(2 * self._batch, _LARGEST_BATCH)

    def _send(self, pfns: Pfns) -> None:
        views = self._source.foreign_map(pfns)
        try:
            listed = encode_pfns(pfns.tolist())
            length = len(listed) + len(pfns) * PAGE_SIZE
            head = encode_record_header(self._record, length) + listed
            self._out.write_now([head, *views])
        finally:
            self._source.foreign_unmap(views)
        self._statistics.postcopy_pages += len(pfns)
        self._board.ints[Word.POSTCOPY_LEFT] = self._pages.remaining
        doing_what = f"postcopy: {self._statistics.postcopy_faults:,} faults"
        self._reporter.progress(doing_what, self._total - self._pages.remaining, self._total)

    def drain(self) -> Outcome:
        """Wait for POSTCOPY_COMPLETE: all pages are on their way, so faults need no answer."""
        faults = self._fault_reader()
        while not faults.complete:
            wait_for(
                self._recv_fd,
                select.POLLIN,
                self._abort,
                self._stall_limit,
                "back channel, waiting for POSTCOPY_COMPLETE",
            )
            self._abort.progress()
            self._take_faults()
        return Outcome.COMPLETE

    def _take_faults(self) -> None:
        pfns = self._fault_reader().take()
        if not pfns:
            return
        self._calm.expect()
        self._statistics.postcopy_faults += self._pages.fault(pfns)
        self._board.ints[Word.POSTCOPY_FAULTS] = self._statistics.postcopy_faults

    def _write_header(self, kind: RecordType, length: int) -> None:
        self._out.write([encode_record_header(record_number(kind, VERSION), length)])
