"""The sender's part of postcopy, from the list of pages to the receiver's last word
(send_postcopy_pfns and postcopy_domain_memory of the postcopy series)."""

from __future__ import annotations

import select
import struct
import time

import numpy as np

from helper.abort import Abort
from helper.fault_channel import FaultReader
from helper.hypervisors.interface import Bitmap, Domain
from helper.page_stream import PageWriter, set_bits
from helper.parameters import Statistics
from helper.postcopy_pages import POSTCOPY_BATCH, BackgroundShare, PostcopyPages
from helper.reporter import Reporter
from helper.save_phases import Outcome
from helper.stream_io import BusyPoll, StreamWriter, poll_milliseconds, wait_for
from ipc_schema.errors import DecodeError
from ipc_schema.libxc_record_types import RecordType, record_number
from ipc_schema.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    MAX_PFNS_PER_RECORD,
    contents_mask,
    encode_page_list,
)
from ipc_schema.records import encode_record_header

_BUSY_SECONDS = 0.0005
"""After a fault the next one is this near."""

VERSION = 3
_LISTED_AT_ONCE = 1 << 14


class PostcopySender:
    """The phases POSTCOPY_PFNS, POSTCOPY_PAGES and POSTCOPY_DRAIN of a save."""

    def __init__(
        self,
        domain: Domain,
        pages: PageWriter,
        out: StreamWriter,
        recv_fd: int,
        reporter: Reporter,
        abort: Abort,
        stall_limit: float,
        statistics: Statistics,
    ) -> None:
        self._domain = domain
        self._writer = pages
        self._out = out
        self._recv_fd = recv_fd
        self._reporter = reporter
        self._abort = abort
        self._stall_limit = stall_limit
        self._statistics = statistics

    def send_pfns(self, dirty: Bitmap) -> Outcome:
        """List the pages of `dirty`, which is taken over: those without contents are told of here
        and drop out of it."""
        self._write_header(RecordType.POSTCOPY_PFNS_BEGIN, 0)
        left = int(np.count_nonzero(dirty))
        position = 0
        while left:
            count = min(left, MAX_PFNS_PER_RECORD)
            self._write_header(RecordType.POSTCOPY_PFNS, HEADER_SIZE + count * ENTRY_SIZE)
            self._out.write([struct.pack("<II", count, 0)])
            left -= count
            while count:
                pfns, position = set_bits(dirty, position, min(count, _LISTED_AT_ONCE))
                types = self._domain.get_pfn_type_batch(pfns)
                self._out.write([memoryview(encode_page_list(pfns, types))[HEADER_SIZE:]])
                dirty[pfns[~contents_mask(types)]] = False
                count -= len(pfns)
        self._pages = PostcopyPages(dirty)
        self._total = self._pages.remaining
        self._reporter.detail(f"{self._total} pages are left to postcopy")
        self._reporter.event("postcopy pfns", pages=self._total)
        return Outcome.DONE

    def send_pages(self) -> Outcome:
        """Send every page once, those first that the guest waits for.

        COMPLETE where the receiver had enough before the last one went.
        """
        self._faults = FaultReader(self._recv_fd, VERSION)
        self._quiet = BusyPoll(_BUSY_SECONDS)
        self._busy, self._stream = select.poll(), select.poll()
        self._stream.register(self._out.fd, select.POLLOUT)
        for poll in (self._quiet, self._busy):
            poll.register(self._recv_fd, select.POLLIN)
            poll.register(self._abort.fileno(), select.POLLIN)
        both = select.POLLIN if self._out.fd == self._recv_fd else 0
        self._busy.register(self._out.fd, select.POLLOUT | both)
        record = record_number(RecordType.POSTCOPY_PAGE_DATA, VERSION)
        share = BackgroundShare()
        while self._pages.remaining:
            self._wait(share)
            self._take_faults()
            if self._faults.complete:
                self._reporter.detail(f"the receiver needs none of {self._pages.remaining} pages")
                return Outcome.COMPLETE
            writable = bool(self._stream.poll(0))
            background = share.allowed(time.monotonic(), self._pages.urgent, writable)
            if self._out.pacer.delay():
                background = 0
            batch = self._pages.batch(POSTCOPY_BATCH, background)
            if not len(batch):
                continue
            self._statistics.postcopy_pages += self._writer.write(record, batch, paced=False)
            self._reporter.progress(
                "Postcopy phase", self._total - self._pages.remaining, self._total
            )
        return Outcome.DONE

    def drain(self) -> Outcome:
        """Wait for POSTCOPY_COMPLETE: all pages are on their way, so faults need no answer."""
        while not self._faults.complete:
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

    def _wait(self, share: BackgroundShare) -> None:
        """Until a fault is there, or background pages may go: they are due, and those before them
        have left the descriptor's buffer, where a fault's page would have to queue behind them.

        A wait for the stream ends by the abort watcher's stall clock.
        """
        if not self._pages.urgent:
            delay = max(self._out.pacer.delay(), share.delay(time.monotonic()))
            if delay:
                self._quiet.poll(poll_milliseconds(delay))
                self._abort.progress()
            else:
                self._busy.poll()
        self._abort.check()

    def _take_faults(self) -> None:
        for pfns in self._faults.take():
            self._quiet.expect()
            try:
                new = self._pages.fault(pfns)
            except ValueError as error:
                raise DecodeError("POSTCOPY_FAULT", 0, str(error)) from error
            self._statistics.postcopy_faults += new

    def _write_header(self, kind: RecordType, length: int) -> None:
        self._out.write([encode_record_header(record_number(kind, VERSION), length)])
