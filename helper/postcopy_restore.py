"""The receiver's part of postcopy: the guest runs here while its pages come
(postcopy_paging_setup, handle_postcopy_pfns and postcopy_restore of the postcopy series)."""

from __future__ import annotations

import errno
import select
from collections import deque
from collections.abc import Set

import numpy as np
from numpy.typing import NDArray

from helper.abort import Abort
from helper.fault_channel import FaultWriter
from helper.hypervisors.interface import PAGE_SIZE, Domain, PagingRequest, Pfns
from helper.page_assembler import PageAssembler
from helper.page_states import PageEvent, PageState, PageStateError, PageStates
from helper.parameters import Statistics
from helper.physmap import Physmap
from helper.reporter import Reporter
from helper.stream_io import BusyPoll, StreamReader, poll_milliseconds
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

_BUSY_SECONDS = 0.0005
"""After a fault, or the page for one, the next event is this near."""
_LOADED_AT_ONCE = 8
"""Pages that are put in place before the descriptors are looked at again."""
_READ_AHEAD = 32
"""Pages that are read before they can be put in place, while no vCPU waits: more are left to the
sender, which then sees that it is ahead."""
_LOADED_WHILE_WAITED = 4
"""The same, while a vCPU waits for a page that has not come."""


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
        self._queue: deque[tuple[int, int]] = deque()
        """Pages that have come, oldest first: pfn and place in the assembler's ring."""
        self._queued: set[int] = set()
        """Those of them that are not in the guest yet."""
        self._requested: set[int] = set()
        """Pages that vCPUs wait for and that have not come."""
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
        stream, paging = self._reader.fd, self._paging.fileno()
        poll = BusyPoll(_BUSY_SECONDS)
        for fd in (stream, paging, self._abort.fileno()):
            poll.register(fd, select.POLLIN)
        timeout = poll_milliseconds(self._stall_limit) if self._stall_limit else None
        told = False
        while not (told and self._assembler.ended):
            if not told and not self._states.pending:
                self._serve_requests()
                self._faults.complete()
                self._reporter.event("postcopy complete")
                told = True
                continue
            if self._assembler.ended and not self._queue:
                raise DecodeError(
                    "END", self._reader.offset, f"{self._states.pending} postcopy pages never came"
                )
            ready = {fd for fd, _events in poll.poll(0 if self._queue else timeout)}
            self._abort.check()
            if not ready and not self._queue:
                raise OSError(
                    errno.ETIMEDOUT,
                    f"stream: no postcopy page for {self._stall_limit} s, "
                    f"{self._states.pending} are missing",
                )
            # Pages first: a request may be for one that is just coming in.
            came = stream in ready and self._wants_more()
            if came:
                if self._requested:
                    poll.expect()
                self._take_pages()
            if paging in ready:
                self._serve_requests()
                poll.expect()
            # Putting a page in place takes much longer than reading it: while a vCPU waits for a
            # page that may be among those on the way, the others get their turn last.
            if self._queue and not (came and self._requested):
                self._load_queued(_LOADED_WHILE_WAITED if self._requested else _LOADED_AT_ONCE)

    def _wants_more(self) -> bool:
        """Whether to read on: what follows END is not ours."""
        if self._assembler.ended:
            return False
        return self._assembler.room > 0 if self._requested else len(self._queue) < _READ_AHEAD

    def _take_pages(self) -> None:
        taken = self._reader.read_some(self._assembler.views(), "POSTCOPY_PAGE_DATA")
        if not taken:
            raise DecodeError(
                "POSTCOPY_PAGE_DATA",
                self._reader.offset,
                f"the stream ends, {self._states.pending} pages are missing",
            )
        for arrived, first in self._assembler.filled(taken):
            pfns = arrived.tolist()
            before = len(self._queued)
            self._queued.update(pfns)
            if len(self._queued) < before + len(pfns):
                raise DecodeError("POSTCOPY_PAGE_DATA", self._reader.offset, "a page came twice")
            self._queue.extend(zip(pfns, range(first, first + len(pfns)), strict=True))
            for pfn in self._requested.intersection(pfns):
                self._load([pfn], first + pfns.index(pfn))

    def _load_queued(self, limit: int) -> None:
        """Put the oldest pages in place that are still waiting for that."""
        count = min(limit, len(self._queue))
        run: list[int] = []
        start = 0
        for _ in range(count):
            pfn, place = self._queue.popleft()
            if pfn not in self._queued:
                continue  # a vCPU waited for it, and has it
            if run and place != start + len(run):
                self._load(run, start)
                run = []
            if not run:
                start = place
            run.append(pfn)
        if run:
            self._load(run, start)
        self._assembler.release(count)
        self._reporter.progress("Postcopy phase", self._total - self._states.pending, self._total)

    def _load(self, pfns: list[int], first: int) -> None:
        """Put pages of the queue in place: they lie in the ring from place `first` on."""
        data = self._assembler.contents(first, len(pfns))
        try:
            before = [self._states.happens_to(PageEvent.ARRIVED, pfn) for pfn in pfns]
        except PageStateError as error:
            raise DecodeError("POSTCOPY_PAGE_DATA", self._reader.offset, str(error)) from error
        if PageState.DROPPED not in before:
            self._paging.load(np.array(pfns, np.uint64), data)
        else:
            for index, state in enumerate(before):
                if state is not PageState.DROPPED:
                    page = data[index * PAGE_SIZE : (index + 1) * PAGE_SIZE]
                    self._paging.load(np.array([pfns[index]], np.uint64), page)
        self._queued.difference_update(pfns)
        self._requested.difference_update(pfns)
        self._statistics.postcopy_pages += len(pfns)

    def _serve_requests(self) -> None:
        """Tell the sender of first faults; let vCPUs go on that have nothing to wait for. Those
        that wait for a page go on when it is loaded."""
        wanted: list[int] = []
        answered: list[PagingRequest] = []
        for request in self._paging.take_requests():
            event = PageEvent.RELEASED if request.dropped else PageEvent.FAULTED
            try:
                before = self._states.happens_to(event, request.pfn)
            except PageStateError as error:
                raise OSError(errno.EFAULT, f"paging request: {error}") from error
            if request.dropped or before in (PageState.READY, PageState.DROPPED):
                answered.append(request)
            elif before is PageState.OUTSTANDING:
                wanted.append(request.pfn)
        self._statistics.postcopy_faults += len(wanted)
        away = [pfn for pfn in wanted if pfn not in self._queued]
        if away:
            self._faults.fault(np.array(away, np.uint64))
            self._requested.update(away)
        if len(away) < len(wanted):
            for pfn, place in list(self._queue):
                if pfn in wanted and pfn in self._queued:
                    self._load([pfn], place)
        if answered:
            self._paging.resume(answered)

    def _happens(self, event: PageEvent, pfns: Pfns, offset: int) -> NDArray[np.uint8]:
        try:
            return self._states.happens(event, pfns)
        except PageStateError as error:
            raise DecodeError("postcopy page", offset, str(error)) from error
