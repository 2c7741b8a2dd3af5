"""The receiver's side of postcopy: the guest runs here while its pages arrive
(postcopy_paging_setup, handle_postcopy_pfns and postcopy_restore of the postcopy series)."""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Callable, Set
from contextlib import ExitStack, suppress

from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.fault_channel import FaultWriter
from xen_save_helper.helper.engine.fault_latencies import FaultLatencies
from xen_save_helper.helper.engine.held_suspend import HeldSuspend
from xen_save_helper.helper.engine.page_assembler import PageAssembler
from xen_save_helper.helper.engine.page_states import (
    PageEvent,
    PageState,
    PageStateError,
    PageStates,
)
from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.engine.physmap import Physmap
from xen_save_helper.helper.engine.stream_io import BusyPoll, StreamInput
from xen_save_helper.helper.hypervisors.interface import (
    PAGE_SIZE,
    Bitmap,
    Domain,
    Paging,
    PagingRequest,
)
from xen_save_helper.helper.job import PostcopyProgress
from xen_save_helper.ipc_schema.board import Word
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.errors import DecodeError, StreamEndError
from xen_save_helper.ipc_schema.streams.page_lists import (
    ENTRY_SIZE,
    HEADER_SIZE,
    allocated_mask,
    contents_mask,
    decode_entries,
    decode_page_list_header,
    empty_mask,
)
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, run_of, selected

_LISTED_AT_ONCE = 1 << 14

_XALLOC = type_octet(PageType.XALLOC)

_BUSY_SECONDS = 0.0005
"""How soon the next event is expected after a fault, or after the page for one."""
_READ_AHEAD = 32
"""Pages that are read before they can be loaded, while no vCPU waits: more are left to the sender,
which then notices that it is ahead."""


class PostcopyReceiver:
    """From the first POSTCOPY_PFNS_BEGIN to END. The constructor turns paging on, and from then on
    the guest is not shown requests to suspend; `close` turns paging off."""

    def __init__(
        self,
        domain: Domain,
        reader: StreamInput,
        version: int,
        environment: Environment,
        paging: Paging | None = None,
    ) -> None:
        """`paging`: that of a pager which has died, and whose place this one takes."""
        job = environment.job
        self._reporter = environment.reporter
        self._abort = environment.abort
        self._statistics = environment.statistics
        self._board = environment.reporter.board
        self._stall_limit = job.stall_limit
        self._reader = reader
        self._version = version
        if job.request.back_fd >= 0:
            self._answer_over(job.request.back_fd)
        self._states = PageStates(0)
        self._listed = 0
        """Entries of all POSTCOPY_PFNS."""
        self._total = 0
        self._requested: dict[int, float] = {}
        """The pages that vCPUs wait for and that have not arrived, and since when, in order."""
        self._latencies = FaultLatencies(self._reporter)
        self._step: Callable[[str], None] = lambda _name: None
        with ExitStack() as undo:
            self._paging = domain.mem_paging_enable() if paging is None else paging
            undo.callback(self._paging.close)
            self._suspends = HeldSuspend(domain, self._reporter)
            undo.callback(self._suspends.close)
            self._undo = undo.pop_all()

    def close(self) -> None:
        self._undo.close()

    def _answer_over(self, back_fd: int) -> None:
        self._faults = FaultWriter(back_fd, self._version, self._abort, self._stall_limit)

    def progress(self) -> PostcopyProgress:
        """How far it is. From any thread."""
        assembler = getattr(self, "_assembler", None)
        left = self._states.pending + (assembler.held if assembler else 0)
        return PostcopyProgress(
            self._total, left, self._statistics.postcopy_faults, self._waiting_since()
        )

    def _waiting_since(self) -> float | None:
        with suppress(RuntimeError):  # it has changed meanwhile: nobody waits for long
            return next(iter(self._requested.values()), None)
        return None

    def go_on_over(self, fd: int, step: Callable[[str], None]) -> None:
        """The pages come over this descriptor, in both directions: not over the stream. It may
        stand still for as long as it likes. `step` is that of `seams.Seams`."""
        self._step = step
        self._stall_limit = 0.0
        self._reader = StreamInput(fd, self._abort)
        self._answer_over(fd)

    def list_pfns(self, length: int, physmap: Physmap, cleared: Set[int]) -> None:
        """Read the body of a POSTCOPY_PFNS record and evict its pages, a part at a time.

        Pages in `cleared` have their new contents already (rings that a restore empties): they
        count as dropped, or the old host's ring would overwrite the new one.
        """
        what = "POSTCOPY_PFNS"
        start = self._reader.offset
        if length < HEADER_SIZE:
            raise DecodeError(what, start, f"{length} bytes are too short for a page list")
        count = decode_page_list_header(self._reader.read(HEADER_SIZE, what), what, start)
        if length != HEADER_SIZE + count * ENTRY_SIZE:
            raise DecodeError(what, start, f"{length} bytes do not hold {count} pfns")
        self._listed += count
        if not len(self._states):
            self._states = PageStates(physmap.limit)
            physmap.is_taken(self._paging.own)
        while count:
            part = min(count, _LISTED_AT_ONCE)
            offset = self._reader.offset
            pfns, types = decode_entries(self._reader.read(part * ENTRY_SIZE, what), what, offset)
            physmap.check(pfns, offset)
            if allocated := selected(pfns, allocated_mask(types)):
                physmap.populate(allocated, bytes([_XALLOC]) * len(allocated), offset)
            for pfn in selected(pfns, empty_mask(types)):
                self.given_back(pfn)
            backed = selected(pfns, contents_mask(types))
            self._happens(PageEvent.LISTED, backed, offset)
            if ours := pfns_of(pfn for pfn in backed if pfn in cleared):
                self._happens(PageEvent.RELEASED, ours, offset)
                backed = pfns_of(pfn for pfn in backed if pfn not in cleared)
            if backed:
                physmap.populate(backed, bytes(len(backed)), offset)
                self._paging.evict(backed)
            count -= part
        self._total = self._states.pending
        self._board.ints[Word.POSTCOPY_TOTAL] = self._total
        self._board.ints[Word.POSTCOPY_LEFT] = self._total

    def tell_ready(self) -> None:
        """Send POSTCOPY_READY."""
        self._faults.ready()

    def awaits(self, pfn: int) -> bool:
        """Whether this page is to come by postcopy still."""
        return pfn < len(self._states) and self._states.of(pfn) is PageState.OUTSTANDING

    def has_come(self, first: int, data: memoryview) -> None:
        """Pages that it awaits, from pfn `first` on, have come while the guest is suspended."""
        for start in range(0, len(data), self._paging.loaded_at_once * PAGE_SIZE):
            part = data[start : start + self._paging.loaded_at_once * PAGE_SIZE]
            pfn = first + start // PAGE_SIZE
            pages = run_of(pfn, len(part) // PAGE_SIZE)
            self._happens(PageEvent.ARRIVED, pages, self._reader.offset)
            self._paging.load(pfn, part)

    def given_back(self, pfn: int) -> None:
        """The guest has given this page back since it was listed, or it is emptied here: nothing
        will come for it, so there is an empty page again."""
        if self.awaits(pfn):
            self._states.happens_to(PageEvent.RELEASED, pfn)
            self._paging.load(pfn, memoryview(bytes(PAGE_SIZE)))

    def missing(self) -> Bitmap:
        """The pages that are still to come, before the first has."""
        return self._states.awaited()

    def take_over(self, missing: Bitmap) -> None:
        """These pages have been listed to a pager that has died, and are still to come."""
        self._states = PageStates(len(missing))
        pfns, _ = set_bits(missing, 0, missing.count(1))
        self._states.happens(PageEvent.LISTED, pfns)
        self._total = self._states.pending
        self._board.ints[Word.POSTCOPY_TOTAL] = self._total
        self._board.ints[Word.POSTCOPY_LEFT] = self._total
        self._paging.wake_all(pfns)

    def check_count(self, count: int, offset: int) -> None:
        """Raise DecodeError unless `count` pages, as POSTCOPY_TRANSITION says whose body is at
        `offset`, were listed. A page that was not stays as precopy left it here: the guest would
        run on with old contents."""
        if count != self._listed:
            raise DecodeError(
                "POSTCOPY_TRANSITION", offset, f"{self._listed} pages were listed, want {count}"
            )

    def receive(self) -> None:
        """Take pages and serve faults until END. Raises DecodeError for unexpected pages and
        OSError(ETIMEDOUT) if nothing arrives.

        Once no page is missing the guest is whole here, and perhaps only here: a sender that then
        disconnects, or never sends END, changes nothing.
        """
        self._assembler = PageAssembler(self._version, self._reader.offset)
        self._reporter.detail(f"{self._states.pending} pages are to come")
        stream, paging = self._reader.fd, self._paging.fileno()
        self._poll = BusyPoll(_BUSY_SECONDS)
        for fd in (stream, paging, self._abort.fileno()):
            self._poll.register(fd, select.POLLIN)
        self._more = select.poll()
        self._more.register(stream, select.POLLIN)
        self._suspends.watch(self._poll, self._states.pending)
        assembler = self._assembler
        self._patience = Patience(self._stall_limit, time.monotonic())
        told = False
        while not (told and assembler.ended):
            if not (told or self._states.pending or assembler.held):
                self._serve_requests()
                self._suspends.let_through()
                self._tell_complete()
                told = True
                continue
            if assembler.ended and self._states.pending:
                raise DecodeError(
                    "END", self._reader.offset, f"{self._states.pending} postcopy pages never came"
                )
            ready = {fd for fd, _events in self._poll.poll(self._wait())}
            if told and self._abort.errnoval == errno.ETIMEDOUT:
                self._goes_without("nothing has come")
                return
            self._abort.check()
            self._suspends.look(ready, self._states.pending + assembler.held)
            # Requests first: reading pages takes longer, and a page that is requested while it is
            # on its way still comes only once.
            if paging in ready:
                self._serve_requests()
            elif stream in ready and self._wants_more():
                try:
                    self._take_pages()
                except (OSError, StreamEndError) as error:
                    if not told or self._abort.errnoval not in {0, errno.ETIMEDOUT}:
                        raise
                    self._goes_without(str(error))
                    return
                self._patience.restart(time.monotonic())
            elif assembler.held:
                self._load_oldest()
                self._patience.restart(time.monotonic())
            elif not ready and self._patience.look(time.monotonic()):
                if told:
                    self._goes_without("nothing has come")
                    return
                raise OSError(
                    errno.ETIMEDOUT,
                    f"stream: no postcopy page for {self._stall_limit} s, "
                    f"{self._states.pending} are missing",
                )

    def _tell_complete(self) -> None:
        self._latencies.tell(missing=0)
        self._reporter.event("postcopy_complete")
        self._step("all-in")
        try:
            self._faults.complete()
        except OSError as error:
            self._reporter.event("without_the_sender", error=str(error))

    def _goes_without(self, why: str) -> None:
        self._reporter.event("without_the_sender", error=why)
        self._reporter.log(
            XentoollogLevel.WARN,
            f"no page is missing; the guest no longer needs its sender: {why}",
        )

    def _wait(self) -> float:
        """Seconds to wait before loading pages that no vCPU is known to wait for. They are loaded
        while a vCPU waits for another page, and while no fault is expected."""
        if self._assembler.held:
            return 0.0 if self._requested else self._poll.busy
        return self._patience.wait

    def _wants_more(self) -> bool:
        """Whether to read on: what follows END is not ours."""
        if self._assembler.ended:
            return False
        return self._assembler.room > 0 if self._requested else self._assembler.held < _READ_AHEAD

    def _take_pages(self) -> None:
        """Read what has come, of one record. A page that a vCPU waits for comes right behind its
        record's header."""
        while True:
            taken = self._reader.read_some(self._assembler.views(), "POSTCOPY_PAGE_DATA")
            if not taken:
                raise StreamEndError(
                    "POSTCOPY_PAGE_DATA",
                    self._reader.offset,
                    f"the stream ends, {self._states.pending} pages are missing",
                )
            if pfns := self._assembler.filled(taken):
                self._arrived(pfns)
                self._count_left()
                return
            if self._assembler.ended or not self._more.poll(0):
                return

    def _arrived(self, pfns: list[int]) -> None:
        """These pages are whole. Load those that vCPUs wait for; the others are held."""
        try:
            if len(pfns) == 1:
                states = bytes([self._states.happens_to(PageEvent.ARRIVED, pfns[0])])
            else:
                states = self._states.happens(PageEvent.ARRIVED, pfns_of(pfns))
        except PageStateError as error:
            raise DecodeError("POSTCOPY_PAGE_DATA", self._reader.offset, str(error)) from error
        self._statistics.postcopy_pages += len(pfns)
        if states.count(PageState.OUTSTANDING) == len(pfns):
            return
        for pfn, before in zip(pfns, states, strict=True):
            if before != PageState.OUTSTANDING:
                data = self._assembler.take(pfn)
                assert data is not None
                if before == PageState.REQUESTED:
                    self._load(pfn, data)
                    self._latencies.add(self._requested.pop(pfn), self._states.pending)
                    self._one_has_come()
                    self._poll.expect()

    def _one_has_come(self) -> None:
        """For which a vCPU waited. Time in which several wait counts once."""
        if not self._requested:
            reals = self._board.reals
            reals[Word.BLOCKTIME] += time.monotonic() - reals[Word.BLOCKED_SINCE]
            reals[Word.BLOCKED_SINCE] = 0.0

    def _count_left(self) -> None:
        self._board.ints[Word.POSTCOPY_LEFT] = self._states.pending + self._assembler.held

    def _load_oldest(self) -> None:
        """Load the oldest pages that are still held."""
        run = self._assembler.take_oldest(self._paging.loaded_at_once)
        if run is not None:
            self._load(*run)
            self._count_left()
        in_place = self._total - self._states.pending - self._assembler.held
        doing_what = f"postcopy: {self._statistics.postcopy_faults:,} faults"
        self._reporter.progress(doing_what, in_place, self._total)

    def _load(self, first: int, data: memoryview) -> None:
        self._step("loads")
        self._paging.load(first, data)

    def _serve_requests(self) -> None:
        """Report first faults to the sender, and resume vCPUs that need not wait. The others
        continue when their page is loaded."""
        wanted: list[int] = []
        answered: list[PagingRequest] = []
        for request in self._paging.take_requests():
            event = PageEvent.RELEASED if request.dropped else PageEvent.FAULTED
            try:
                before = self._states.happens_to(event, request.pfn)
            except PageStateError as error:
                raise OSError(errno.EFAULT, f"paging request: {error}") from error
            if request.dropped:
                answered.append(request)
            elif before is PageState.OUTSTANDING:
                wanted.append(request.pfn)
            elif before is not PageState.REQUESTED:
                # It is loaded, or held and waiting for its turn, or nobody needs it any more.
                data = self._assembler.take(request.pfn)
                if data is None:
                    answered.append(request)
                else:
                    self._load(request.pfn, data)
        if wanted:
            self._step("asks")
            self._faults.fault(wanted)
            now = time.monotonic()
            if not self._requested:
                self._board.reals[Word.BLOCKED_SINCE] = now
            self._requested.update(dict.fromkeys(wanted, now))
            self._statistics.postcopy_faults += len(wanted)
            self._board.ints[Word.POSTCOPY_FAULTS] = self._statistics.postcopy_faults
        if answered:
            self._paging.resume(answered)

    def _happens(self, event: PageEvent, pfns: Pfns, offset: int) -> None:
        try:
            self._states.happens(event, pfns)
        except PageStateError as error:
            raise DecodeError("postcopy page", offset, str(error)) from error
