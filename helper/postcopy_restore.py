"""The receiver's part of postcopy: the guest runs here while its pages come
(postcopy_paging_setup, handle_postcopy_pfns and postcopy_restore of the postcopy series)."""

from __future__ import annotations

import errno
import select
from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from helper.abort import Abort
from helper.fault_channel import FaultWriter
from helper.hypervisors.interface import PAGE_SIZE, Domain, PagingRequest, Pfns
from helper.page_assembler import Arrival, PageAssembler
from helper.page_states import PageEvent, PageState, PageStateError, PageStates
from helper.parameters import Statistics
from helper.physmap import Physmap
from helper.reporter import Reporter
from helper.stream_io import StreamReader, poll_milliseconds
from ipc_schema.errors import DecodeError
from ipc_schema.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    contents_mask,
    decode_entries,
    decode_page_list_header,
)
from ipc_schema.page_types import PageType

_LISTED_AT_ONCE = 1 << 14


class PostcopyReceiver:
    """One postcopy phase, from POSTCOPY_PFNS_BEGIN to END. Making it switches paging on; `close`
    switches it off."""

    def __init__(
        self,
        domain: Domain,
        reader: StreamReader,
        faults: FaultWriter,
        version: int,
        reporter: Reporter,
        abort: Abort,
        stall_limit: float,
        statistics: Statistics,
    ) -> None:
        self._reader = reader
        self._faults = faults
        self._version = version
        self._reporter = reporter
        self._abort = abort
        self._stall_limit = stall_limit
        self._statistics = statistics
        self._states = PageStates(0)
        self._total = 0
        self._paging = domain.mem_paging_enable()

    def close(self) -> None:
        self._paging.close()

    def list_pfns(self, length: int, physmap: Physmap, cleared: Set[int]) -> None:
        """Read the body of a POSTCOPY_PFNS record and evict its pages, a part at a time.

        Pages in `cleared` have their new contents already (rings that a restore empties): they
        count as dropped, or the old host's ring would come over the new one's.
        """
        what = "POSTCOPY_PFNS"
        start = self._reader.offset
        if length < HEADER_SIZE:
            raise DecodeError(what, start, f"{length} octets are too short for a page list")
        count = decode_page_list_header(self._reader.read(HEADER_SIZE, what), what, start)
        if length != HEADER_SIZE + count * ENTRY_SIZE:
            raise DecodeError(what, start, f"{length} octets do not hold {count} pfns")
        if not len(self._states):
            self._states = PageStates(physmap.limit)
        while count:
            part = min(count, _LISTED_AT_ONCE)
            offset = self._reader.offset
            pfns, types = decode_entries(self._reader.read(part * ENTRY_SIZE, what), what, offset)
            physmap.check(pfns, offset)
            allocated = types == PageType.XALLOC
            if allocated.any():
                physmap.populate(pfns[allocated], types[allocated], offset)
            backed = pfns[contents_mask(types)]
            if len(backed):
                self._happens(PageEvent.LISTED, backed, offset)
                if cleared:
                    ours = np.isin(backed, np.fromiter(cleared, np.uint64))
                    self._happens(PageEvent.RELEASED, backed[ours], offset)
                    backed = backed[~ours]
            if len(backed):
                physmap.populate(backed, np.zeros(len(backed), np.uint32), offset)
                self._paging.evict(backed)
            count -= part
        self._total = self._states.pending

    def receive(self) -> None:
        """Take pages and serve faults until END. Raises DecodeError for pages that may not come
        and OSError(ETIMEDOUT) where nothing does."""
        self._assembler = PageAssembler(self._version, self._reader.offset)
        self._reporter.detail(f"{self._states.pending} pages are to come")
        poll = select.poll()
        for fd in (self._reader.fd, self._paging.fileno(), self._abort.fileno()):
            poll.register(fd, select.POLLIN)
        timeout = poll_milliseconds(self._stall_limit) if self._stall_limit else None
        told = False
        while not self._assembler.ended:
            if not told and not self._states.pending:
                self._serve_requests()
                self._faults.complete()
                self._reporter.event("postcopy complete")
                told = True
            ready = {fd for fd, _events in poll.poll(timeout)}
            self._abort.check()
            if not ready:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"stream: no postcopy page for {self._stall_limit} s, "
                    f"{self._states.pending} are missing",
                )
            # Pages first: a request may be for one that is just coming in.
            if self._reader.fd in ready:
                self._take_pages()
            if self._paging.fileno() in ready:
                self._serve_requests()
        if self._states.pending:
            raise DecodeError(
                "END", self._reader.offset, f"{self._states.pending} postcopy pages never came"
            )

    def _take_pages(self) -> None:
        taken = self._reader.read_some(self._assembler.views(), "POSTCOPY_PAGE_DATA")
        if not taken:
            raise DecodeError(
                "POSTCOPY_PAGE_DATA",
                self._reader.offset,
                f"the stream ends, {self._states.pending} pages are missing",
            )
        for arrival in self._assembler.filled(taken):
            self._load(arrival)
        self._reporter.progress("Postcopy phase", self._total - self._states.pending, self._total)

    def _load(self, arrival: Arrival) -> None:
        pfns, data = arrival
        before = self._happens(PageEvent.ARRIVED, pfns, self._reader.offset)
        if (before == PageState.DROPPED).any():
            for index in np.flatnonzero(before != PageState.DROPPED).tolist():
                self._paging.load(
                    pfns[index : index + 1], data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
                )
        else:
            self._paging.load(pfns, data)
        self._statistics.postcopy_pages += len(pfns)

    def _serve_requests(self) -> None:
        """Tell the sender of first faults; let vCPUs go on that have nothing to wait for. Those
        that wait for a page go on when it is loaded."""
        wanted: list[int] = []
        answered: list[PagingRequest] = []
        for request in self._paging.take_requests():
            event = PageEvent.RELEASED if request.dropped else PageEvent.FAULTED
            before = self._states.happens_to(event, request.pfn)
            if request.dropped or before in (PageState.READY, PageState.DROPPED):
                answered.append(request)
            elif before is PageState.OUTSTANDING:
                wanted.append(request.pfn)
        if wanted:
            self._faults.fault(np.array(wanted, np.uint64))
            self._statistics.postcopy_faults += len(wanted)
        if answered:
            self._paging.resume(answered)

    def _happens(self, event: PageEvent, pfns: Pfns, offset: int) -> NDArray[np.uint8]:
        try:
            return self._states.happens(event, pfns)
        except PageStateError as error:
            raise DecodeError("postcopy page", offset, str(error)) from error
