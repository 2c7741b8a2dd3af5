"""`xc_domain_restore`: our engine's restore of an HVM or PVH domain from a libxc stream, version 2
or 3 (xg_sr_restore.c and xg_sr_restore_x86_hvm.c), postcopy included."""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import groupby

from xen_save_helper.helper.cpu_check import check_features
from xen_save_helper.helper.engine import hvm_params
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.page_reader import PageReader
from xen_save_helper.helper.engine.page_stream import read_page_list
from xen_save_helper.helper.engine.physmap import Physmap
from xen_save_helper.helper.engine.restore_order import POSTCOPY_RECORDS, RecordOrder
from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Domain
from xen_save_helper.helper.job import RestoreResults
from xen_save_helper.ipc_schema.board import Word
from xen_save_helper.ipc_schema.channel.messages import StreamType
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING
from xen_save_helper.ipc_schema.streams.libxc_bodies import Body, TscInfo
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_type
from xen_save_helper.ipc_schema.streams.libxc_records import check_length, decode_body
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DOMAIN_HEADER_SIZE,
    IMAGE_HEADER_SIZE,
    DomainType,
    decode_domain_header,
    decode_image_header,
)
from xen_save_helper.ipc_schema.streams.page_lists import allocated_mask, contents_mask
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, runs_of, selected
from xen_save_helper.ipc_schema.streams.phases import HEADERS, Stage
from xen_save_helper.ipc_schema.streams.records import (
    HEADER_SIZE,
    check_padding,
    decode_record_header,
    padding,
)

if TYPE_CHECKING:
    from xen_save_helper.helper.engine.page_compare import PageComparer
    from xen_save_helper.helper.engine.postcopy_restore import PostcopyReceiver

_MISSING_CPUID = 1
_MISSING_MSR = 2
"""XGR_SDD_MISSING_*: bits of static_data_done's argument."""

_PAGE_DATA = RecordType.PAGE_DATA


def domain_restore(domain: Domain, environment: Environment) -> RestoreResults:
    """Restore `domain`, which is new and has no memory, whatever the request's domid is. Reads up
    to the END record, and not a byte more.

    Raises DecodeError for a bad stream, with the offset in the libxc stream; OSError from the
    hypervisor, the stream or the abort, with EOPNOTSUPP for a stream that we do not support, EIO
    for a failed callback; ChannelError if the controller is gone.
    """
    return _Restore(domain, environment).run()


class _Restore:
    def __init__(self, domain: Domain, environment: Environment) -> None:
        self._domain = domain
        self._environment = environment
        self._job = environment.job
        self._reporter = environment.reporter
        self._abort = environment.abort
        self._pager = environment.pager
        self._request = self._job.request
        self._board = environment.reporter.board
        self._reader = StreamInput(self._request.io_fd, self._abort, board=self._board)
        self._results = RestoreResults(statistics=environment.statistics)
        self._physmap = Physmap(domain)
        self._pages = PageReader(domain, self._reader)
        self._version = 0
        self._cpuid = b""
        self._msr = b""
        self._context: bytes | None = None
        self._cleared: set[int] = set()
        self._sparse = False
        self._comparer: PageComparer | None = None
        self._given = 0
        self._postcopy: PostcopyReceiver | None = None

    def run(self) -> RestoreResults:
        if self._request.stream_type is not StreamType.PLAIN:
            name = self._request.stream_type.name
            raise OSError(
                errno.EOPNOTSUPP,
                f"our engine cannot read a checkpointed stream ({name}); use libxenguest's",
            )
        self._abort.guard_stream(self._request.io_fd, reading=True)
        try:
            with self._reporter.phase(HEADERS):
                self._headers()
            self._order = RecordOrder(self._version)
            self._records()
        finally:
            self._pages.finish()
            self._board.phase = Stage.ENDED.value
            self._results.statistics.bytes = self._reader.offset
            self._abort.release_stream()
            if self._postcopy is not None:
                self._postcopy.close()
        self._reporter.info(
            f"Restore successful: {self._results.statistics.pages} pages, "
            f"{self._results.statistics.postcopy_pages} by postcopy"
        )
        return self._results

    def _headers(self) -> None:
        image = decode_image_header(self._reader.read(IMAGE_HEADER_SIZE, "image header"))
        self._version = image.version
        header = decode_domain_header(
            self._reader.read(DOMAIN_HEADER_SIZE, "domain header"), IMAGE_HEADER_SIZE
        )
        info = self._domain.getinfo()
        hvm = header.type is DomainType.X86_HVM
        self._reporter.info(
            f"Found {header.type.name} domain from Xen {header.xen_major}.{header.xen_minor}"
        )
        if not hvm:
            raise OSError(
                errno.EOPNOTSUPP,
                "this is the stream of a PV domain, and our engine restores only HVM and PVH "
                "domains; use libxenguest's",
            )
        if not info.hvm:
            raise OSError(
                errno.EINVAL,
                f"this is the stream of an HVM domain, and domain {self._domain.domid} is PV",
            )

    def _records(self) -> None:
        """Handle records until END; each stage of the stream is a phase in the trace."""
        handlers: dict[RecordType, Callable[[int], None]] = {
            _PAGE_DATA: self._page_data,
            RecordType.X86_CPUID_POLICY: self._cpuid_policy,
            RecordType.X86_MSR_POLICY: self._msr_policy,
            RecordType.SPARSE: self._sparse_begins,
            RecordType.POSTCOPY_OFFER: self._postcopy_offer,
            RecordType.STATIC_DATA_END: self._static_data_end,
            RecordType.X86_TSC_INFO: self._tsc_info,
            RecordType.HVM_CONTEXT: self._hvm_context,
            RecordType.HVM_PARAMS: self._hvm_params,
            RecordType.VERIFY: self._verify,
            RecordType.POSTCOPY_BEGIN: self._postcopy_begin,
            RecordType.POSTCOPY_PFNS_BEGIN: self._postcopy_pfns_begin,
            RecordType.POSTCOPY_PFNS: self._postcopy_pfns,
            RecordType.POSTCOPY_TRANSITION: self._postcopy_transition,
            RecordType.END: self._end,
        }
        while (stage := self._order.stage) is not Stage.ENDED:
            with self._reporter.phase(stage.value):
                if stage is Stage.POSTCOPY_PAGES:
                    self._receive_postcopy()
                    continue
                while self._order.stage is stage:
                    record = self._next_record()
                    if record is not None:
                        handlers[record[0]](record[1])

    def _next_record(self) -> tuple[RecordType, int] | None:
        """Type and length of the next record, after checking its place in the order; None for an
        optional record that was skipped."""
        offset = self._reader.offset
        number, length = decode_record_header(
            self._reader.read(HEADER_SIZE, "record header"), "record", offset
        )
        kind = record_type(number, self._version, offset)
        if kind is None:
            self._reporter.detail(f"ignoring optional record {number:#x} at offset {offset:#x}")
            self._reader.skip(length, "optional record")
            self._padding(length, "optional record")
            return None
        if kind is not _PAGE_DATA:
            self._pages.finish()
            self._check_kind(kind, offset)
        if self._order.record(kind, offset):
            self._static_data_complete()
        return kind, length

    def _check_kind(self, kind: RecordType, offset: int) -> None:
        """Raise DecodeError for a record that this restore cannot have."""
        if kind is RecordType.CHECKPOINT:
            raise DecodeError(kind.name, offset, "a checkpoint in a plain stream")
        by_pager = self._pager is not None and self._pager.connected
        if kind in POSTCOPY_RECORDS and not self._request.postcopy and not by_pager:
            raise DecodeError(kind.name, offset, "postcopy was not agreed on for this restore")
        if kind in POSTCOPY_RECORDS and self._request.back_fd < 0 and not by_pager:
            raise DecodeError(kind.name, offset, "postcopy needs a back channel, and there is none")

    def _body(self, kind: RecordType, length: int) -> bytes:
        check_length(kind, length, self._reader.offset - HEADER_SIZE, self._version)
        body = self._reader.read(length, kind.name)
        self._padding(length, kind.name)
        return body

    def _padding(self, length: int, what: str) -> None:
        """Read and check the padding after a body of `length` bytes."""
        offset = self._reader.offset
        check_padding(self._reader.read(padding(length), what), what, offset)

    def _decoded(self, kind: RecordType, length: int) -> Body:
        offset = self._reader.offset
        return decode_body(kind, self._body(kind, length), offset, self._version)

    # Static data.

    def _cpuid_policy(self, length: int) -> None:
        self._cpuid = self._body(RecordType.X86_CPUID_POLICY, length)

    def _msr_policy(self, length: int) -> None:
        self._msr = self._body(RecordType.X86_MSR_POLICY, length)

    def _sparse_begins(self, length: int) -> None:
        self._decoded(RecordType.SPARSE, length)
        self._sparse = True

    def _static_data_end(self, length: int) -> None:
        self._decoded(RecordType.STATIC_DATA_END, length)
        self._static_data_complete()

    def _static_data_complete(self) -> None:
        """x86_static_data_complete, and the callback."""
        missing = (0 if self._cpuid else _MISSING_CPUID) | (0 if self._msr else _MISSING_MSR)
        if self._cpuid:
            offered = self._domain.system_cpu_policy()
            choice = self._request.missing_cpu_features
            check_features(self._cpuid, offered, choice, self._reporter)
        if self._cpuid or self._msr:
            self._domain.set_cpu_policy(self._cpuid, self._msr)
        if self._reporter.provides("static_data_done") and self._reporter.call(
            "static_data_done", missing=missing
        ):
            raise OSError(errno.EIO, "the static_data_done callback failed")

    # Memory.

    def _page_data(self, length: int) -> None:
        pfns, types, pages = read_page_list(self._reader, length, "PAGE_DATA")
        self._physmap.populate(pfns, types, self._reader.offset)
        if self._sparse:
            zeros = selected(pfns, allocated_mask(types))
            for first, count, _ in runs_of(zeros):
                self._domain.clear_pages(first, count)
        if not pages:
            return
        present = pfns if pages == len(pfns) else selected(pfns, contents_mask(types))
        if self._comparer is not None:
            self._comparer.compare(present)
        elif self._postcopy is not None:
            self._read_listed(self._postcopy, present)
        else:
            self._pages.read(present)
        self._results.statistics.pages += pages
        self._board.ints[Word.PAGES] = self._results.statistics.pages
        self._tell_progress()

    def _read_listed(self, postcopy: PostcopyReceiver, pfns: Pfns) -> None:
        """Pages among which are some that were to come by postcopy."""
        for awaits, group in groupby(pfns, postcopy.awaits):
            alike = pfns_of(group)
            if not awaits:
                self._pages.read(alike)
                continue
            for first, count, _ in runs_of(alike):
                data = self._reader.read(count * PAGE_SIZE, "PAGE_DATA")
                postcopy.has_come(first, memoryview(data))

    def _tell_progress(self) -> None:
        """Report how much of its memory the domain has been given; rounds of a live migration that
        bring no new page are not reported."""
        if self._physmap.count != self._given:
            self._given = self._physmap.count
            self._board.ints[Word.ROUND_DONE] = self._given
            self._board.ints[Word.ROUND_TOTAL] = self._physmap.memory
            self._board.ints[Word.TOTAL_PAGES] = self._physmap.memory
            self._reporter.progress("Frames", self._given, self._physmap.memory)

    def _verify(self, length: int) -> None:
        from xen_save_helper.helper.engine.page_compare import PageComparer

        self._decoded(RecordType.VERIFY, length)
        self._comparer = PageComparer(self._domain, self._reader, self._reporter)
        self._reporter.info("Verify mode: comparing the stream with memory")

    # State.

    def _tsc_info(self, length: int) -> None:
        tsc = self._decoded(RecordType.X86_TSC_INFO, length)
        assert isinstance(tsc, TscInfo)
        self._domain.set_tsc_info(tsc)

    def _hvm_context(self, length: int) -> None:
        self._context = self._body(RecordType.HVM_CONTEXT, length)

    def _hvm_params(self, length: int) -> None:
        params = self._decoded(RecordType.HVM_PARAMS, length)
        assert isinstance(params, list)
        for index, value in params:
            if index == hvm_params.PAE_ENABLED:
                continue  # only for xc_cpuid_apply_policy, in old streams
            if index == hvm_params.STORE_PFN:
                self._results.store_gfn = value
            elif index == hvm_params.CONSOLE_PFN:
                self._results.console_gfn = value
            if index in hvm_params.CLEARED:
                self._physmap.populate_one(value, self._reader.offset)
                if self._postcopy is not None:
                    self._postcopy.given_back(value)
                if index == hvm_params.CONSOLE_PFN:
                    self._domain.console_init(value)
                else:
                    self._domain.clear_pages(value)
                self._cleared.add(value)
            self._domain.hvm_param_set(index, value)

    def _stream_complete(self) -> None:
        """x86_hvm_stream_complete: what remains to do once all state has arrived."""
        if self._context is None:
            raise DecodeError("HVM_CONTEXT", self._reader.offset, "missing from the stream")
        self._domain.hvm_param_set(hvm_params.STORE_EVTCHN, self._request.store_evtchn)
        self._domain.hvm_param_set(hvm_params.CONSOLE_EVTCHN, self._request.console_evtchn)
        self._domain.hvm_setcontext(self._context)
        self._domain.gnttab_seed(
            console_gfn=self._results.console_gfn,
            store_gfn=self._results.store_gfn,
            console_domid=self._request.console_domid,
            store_domid=self._request.store_domid,
        )

    def _end(self, length: int) -> None:
        self._decoded(RecordType.END, length)
        self._stream_complete()
        if self._comparer is not None:
            self._comparer.tell_total()

    # Postcopy.

    def _postcopy_begin(self, length: int) -> None:
        self._decoded(RecordType.POSTCOPY_BEGIN, length)

    def _postcopy_pfns_begin(self, length: int) -> None:
        self._decoded(RecordType.POSTCOPY_PFNS_BEGIN, length)
        if self._postcopy is None:
            from xen_save_helper.helper.engine.postcopy_restore import PostcopyReceiver

            self._postcopy = PostcopyReceiver(
                self._domain, self._reader, self._version, self._environment
            )
        self._tell_ready()

    def _postcopy_pfns(self, length: int) -> None:
        self._receiver().list_pfns(length, self._physmap, frozenset(self._cleared))
        self._tell_ready()

    def _tell_ready(self) -> None:
        """Answer a record that came ahead: the guest is not suspended before."""
        if self._order.stage is not Stage.POSTCOPY_PFNS_AHEAD:
            return
        if self._pager is not None:
            self._pager.ready()
        else:
            self._receiver().tell_ready()

    def _postcopy_transition(self, length: int) -> None:
        offset = self._reader.offset
        count = self._decoded(RecordType.POSTCOPY_TRANSITION, length)
        if isinstance(count, int):  # the series' has none
            self._receiver().check_count(count, offset)
        self._stream_complete()
        if self._pager is not None:
            return
        if self._reporter.provides("restore_results"):
            self._reporter.tell(
                "restore_results",
                store_gfn=self._results.store_gfn,
                console_gfn=self._results.console_gfn,
            )
        self._reporter.info("Postcopy transition: resuming guest")
        if not self._reporter.transition():
            raise OSError(errno.EIO, "the postcopy transition callback failed")

    def _postcopy_offer(self, length: int) -> None:
        from xen_save_helper.ipc_schema.streams import postcopy_offer

        offset = self._reader.offset
        body = self._body(RecordType.POSTCOPY_OFFER, length)
        if self._pager is not None and self._pager.connected:
            raise DecodeError("POSTCOPY_OFFER", offset, "there is a page server already")
        if self._pager is not None:
            self._pager.offered(postcopy_offer.decode(body, offset), self._domain)

    def _receive_postcopy(self) -> None:
        if self._pager is not None:
            self._next_record()  # END, says the order
            receiver = self._receiver()
            self._pager.leave(self._results, receiver.progress, receiver.missing())
            receiver.go_on_over(self._pager.fileno(), self._pager.step)
            receiver.receive()
            return
        self._receiver().receive()
        self._order.record(RecordType.END, self._reader.offset)

    def _receiver(self) -> PostcopyReceiver:
        # The order of records ensures this: pages are listed only after POSTCOPY_PFNS_BEGIN.
        assert self._postcopy is not None
        return self._postcopy
