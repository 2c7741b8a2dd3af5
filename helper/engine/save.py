"""`xc_domain_save`: our engine's save of a domain, live or not, with a postcopy phase if the policy
asks for one (xg_sr_save.c and xg_sr_save_x86_hvm.c; xc_sr_save.c of the postcopy series)."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from xen_save_helper.helper.channels.channel import ChannelError
from xen_save_helper.helper.engine import hvm_params
from xen_save_helper.helper.engine.environment import Environment, PageServer
from xen_save_helper.helper.engine.page_stream import PageWriter
from xen_save_helper.helper.engine.precopy import Rounds, precopy_policy
from xen_save_helper.helper.engine.save_phases import NEXT, Outcome
from xen_save_helper.helper.engine.stream_io import StreamOutput
from xen_save_helper.helper.hypervisors.interface import Domain, ShutdownReason
from xen_save_helper.helper.paged_in import check_paged_in
from xen_save_helper.ipc_schema.board import Word
from xen_save_helper.ipc_schema.channel.messages import (
    PrecopyPolicy,
    StreamType,
    XCFlags,
    XentoollogLevel,
)
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.libxc_records import encode_body
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DomainHeader,
    ImageHeader,
    encode_domain_header,
    encode_image_header,
)
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.phases import Phase
from xen_save_helper.ipc_schema.streams.records import encode_record

if TYPE_CHECKING:
    from xen_save_helper.helper.engine.postcopy_save import PostcopySender

_READY_SECONDS = 5.0
"""How long a receiver may take to connect to the page server, after the last round."""
_LOOK_SECONDS = 0.2


def domain_save(domain: Domain, environment: Environment) -> None:
    """Save `domain`, whatever the request's domid is.

    Raises OSError from the hypervisor, the stream or the abort, or with EINVAL, EOPNOTSUPP and
    ECANCELED for a callback's answer or the caller's request; ChannelError if the controller is
    gone; DecodeError for bad records on the back channel. However it ends, log-dirty mode is off
    and the stream descriptor is no longer guarded.
    """
    _Save(domain, environment).run()


class _Save:
    def __init__(self, domain: Domain, environment: Environment) -> None:
        self._domain = domain
        self._environment = environment
        self._job = environment.job
        self._reporter = environment.reporter
        self._abort = environment.abort
        self._statistics = environment.statistics
        self._page_server = environment.page_server
        self._request = self._job.request
        self._live = bool(self._request.xcflags & XCFlags.LIVE)
        board = environment.reporter.board
        self._out = StreamOutput(
            self._request.io_fd, self._abort, self._request.bandwidth, board=board
        )
        self._pages = PageWriter(domain, self._out)
        self._postcopy: PostcopySender | None = None
        self._vcpu_infos = pfns_of()
        """Pages that postcopy must not leave behind: see `Domain.needed_at_once`."""
        self._logdirty = False
        self._qemu_logdirty = False

    def run(self) -> None:
        self._check()
        self._rounds = Rounds(self._domain, self._pages, self._environment)
        self._policy = precopy_policy(self._reporter, self._job, lambda: self._out.sent)
        phases: dict[Phase, Callable[[], Outcome]] = {
            Phase.HEADERS: self._headers,
            Phase.STATIC_DATA: self._static_data,
            Phase.PRECOPY: self._precopy,
            Phase.SUSPEND: self._suspend,
            Phase.STOP_AND_COPY: self._stop_and_copy,
            Phase.VERIFY: self._verify,
            Phase.STATE: self._state,
            Phase.POSTCOPY_PFNS_AHEAD: self._postcopy_pfns_ahead,
            Phase.SUSPEND_FOR_POSTCOPY: self._suspend,
            Phase.POSTCOPY_BEGIN: self._postcopy_begin,
            Phase.POSTCOPY_PFNS: self._postcopy_pfns,
            Phase.POSTCOPY_TRANSITION: self._postcopy_transition,
            Phase.POSTCOPY_PAGES: lambda: self._sender().send_pages(),
            Phase.POSTCOPY_DRAIN: lambda: self._sender().drain(),
            Phase.END: self._end,
        }
        self._abort.guard_stream(self._request.io_fd, moved=lambda: self._out.sent)
        try:
            self._enable_qemu_logdirty()
            phase = Phase.HEADERS
            while phase is not Phase.FINISHED:
                with self._reporter.phase(phase.value):
                    outcome = phases[phase]()
                phase = NEXT[phase, outcome]
        finally:
            self._reporter.board.phase = Phase.FINISHED.value
            self._statistics.bytes = self._out.sent
            self._abort.release_stream()
            self._cleanup()

    def _check(self) -> None:
        """Refuse what we do not support, before anything has happened."""
        if self._request.stream_type is not StreamType.PLAIN:
            name = self._request.stream_type.name
            raise OSError(
                errno.EOPNOTSUPP,
                f"our engine cannot write a checkpointed stream ({name}); use libxenguest's",
            )
        info = self._domain.getinfo()
        if not info.hvm:
            raise OSError(
                errno.EOPNOTSUPP,
                f"domain {self._domain.domid} is PV, and our engine saves HVM and PVH domains "
                "only; use libxenguest's",
            )
        check_paged_in(self._domain.domid, info.paged_pages)
        self._reporter.board.ints[Word.TOTAL_PAGES] = info.nr_pages

    # The phases, in the order of their table.

    def _headers(self) -> Outcome:
        live = "live" if self._live else "non-live"
        self._reporter.info(f"Saving domain {self._domain.domid}, type x86 HVM, {live}")
        header = encode_image_header(ImageHeader(version=VERSION))
        major, minor = self._domain.version()
        domain = DomainHeader(xen_major=major, xen_minor=minor)
        self._out.write([header + encode_domain_header(domain)])
        return Outcome.DONE

    def _static_data(self) -> Outcome:
        cpuid, msr = self._domain.cpu_policy()
        if cpuid:
            self._write_record(RecordType.X86_CPUID_POLICY, cpuid)
        if msr:
            self._write_record(RecordType.X86_MSR_POLICY, msr)
        if self._request.sparse:
            self._write_record(RecordType.SPARSE)
        if self._page_server is not None:
            self._offer_postcopy(self._page_server)
        self._write_record(RecordType.STATIC_DATA_END)
        return Outcome.LIVE if self._live else Outcome.NON_LIVE

    def _offer_postcopy(self, page_server: PageServer) -> None:
        from xen_save_helper.ipc_schema.streams import postcopy_offer

        try:
            offer = page_server.offer()
        except OSError as error:
            self._no_link(str(error))
            return
        self._write_record(RecordType.POSTCOPY_OFFER, postcopy_offer.encode(offer))

    def _no_link(self, refusal: str) -> None:
        """All goes over the stream. The page server ends with this process."""
        self._page_server = None
        self._reporter.log(XentoollogLevel.WARN, f"no postcopy: {refusal}")
        if self._reporter.provides("page_server"):
            self._reporter.tell("page_server", server="", pages=0, refusal=refusal)

    def _precopy(self) -> Outcome:
        self._enable_logdirty()
        if self._request.postcopy or self._page_server is not None:
            self._vcpu_infos = self._domain.needed_at_once()
        decision = self._rounds.send_memory_live(self._policy)
        if self._page_server is not None:
            if refusal := self._refusal(self._page_server):
                self._no_link(refusal)
                return Outcome.STOP_AND_COPY
            return Outcome.POSTCOPY
        if decision is not PrecopyPolicy.POSTCOPY:
            return Outcome.STOP_AND_COPY
        if not self._request.postcopy or self._request.back_fd < 0:
            why = "has no back channel" if self._request.back_fd < 0 else "must not use it"
            raise OSError(
                errno.EOPNOTSUPP, f"precopy policy asked for postcopy, but this save {why}"
            )
        return Outcome.POSTCOPY

    def _refusal(self, page_server: PageServer) -> str:
        """Why there will be no postcopy, "" if all is ready. A small guest is sent sooner than the
        receiver has connected; it runs on meanwhile."""
        self._abort.idle()
        end = time.monotonic() + _READY_SECONDS
        try:
            while (refusal := page_server.refusal(_LOOK_SECONDS)) is None:
                self._abort.check()
                if time.monotonic() > end:
                    return "the receiver has not connected to the page server"
        except OSError as error:
            self._abort.check()
            return str(error)
        return refusal

    def _suspend(self) -> Outcome:
        if self._reporter.call("suspend") != 1:
            raise OSError(
                errno.EIO, f"domain {self._domain.domid} was not suspended: the callback failed"
            )
        info = self._domain.getinfo()
        if info.shutdown_reason is not ShutdownReason.SUSPEND:
            reason = info.shutdown_reason
            state = f"it is shut down with {reason.name}" if reason is not None else "it runs"
            raise OSError(errno.EIO, f"domain {self._domain.domid} has not been suspended: {state}")
        self._reporter.info("Domain now suspended")
        if self._live:
            count = self._rounds.gather_final()
            self._reporter.detail(f"{count} pages remain")
            self._reporter.event("final_dirty", dirty_count=count)
        return Outcome.DONE

    def _stop_and_copy(self) -> Outcome:
        if not self._live:
            self._rounds.send_all_pages("Frames", sparse=self._request.sparse)
            return Outcome.DONE
        self._rounds.send_final("Final precopy iteration")
        return Outcome.DEBUG if self._request.xcflags & XCFlags.DEBUG else Outcome.DONE

    def _verify(self) -> Outcome:
        self._write_record(RecordType.VERIFY)
        self._rounds.send_all_pages("Frames verify")
        return Outcome.DONE

    def _state(self) -> Outcome:
        return self._write_state(self._domain.hvm_getcontext())

    def _write_state(self, context: bytes) -> Outcome:
        """The state of the CPUs and of the platform (x86_hvm_end_of_checkpoint)."""
        self._write_record(
            RecordType.X86_TSC_INFO,
            encode_body(RecordType.X86_TSC_INFO, self._domain.tsc_info()),
        )
        self._write_record(RecordType.HVM_CONTEXT, context)
        params = hvm_params.to_save(self._domain.hvm_param_get)
        if params:
            self._write_record(RecordType.HVM_PARAMS, encode_body(RecordType.HVM_PARAMS, params))
        return Outcome.DONE

    def _postcopy_pfns_ahead(self) -> Outcome:
        from xen_save_helper.helper.engine.postcopy_save import PostcopySender

        self._postcopy = PostcopySender(self._domain, self._out, self._environment)
        return self._postcopy.send_pfns_ahead(self._domain, self._rounds.gather_left)

    def _postcopy_begin(self) -> Outcome:
        context = self._domain.hvm_getcontext()
        ahead = {"vcpu_info": self._vcpu_infos, **self._domain.needed_by(context)}
        self._rounds.send_ahead(ahead)
        self._write_record(RecordType.POSTCOPY_BEGIN)
        return self._write_state(context)

    def _postcopy_pfns(self) -> Outcome:
        rounds = self._rounds
        return self._sender().send_pfns(self._domain, rounds.dirty, rounds.written)

    def _sender(self) -> PostcopySender:
        # The table of phases ensures this: pages are listed ahead first.
        assert self._postcopy is not None
        return self._postcopy

    def _postcopy_transition(self) -> Outcome:
        listed = encode_body(RecordType.POSTCOPY_TRANSITION, self._sender().listed)
        if self._page_server is not None:
            sender = self._sender()
            self._page_server.map(sender.to_map(self._rounds.written))
            kept = self._page_server.keep(sender.left)
            self._reporter.info(f"{kept} pages are left to the page server")
            self._write_record(RecordType.POSTCOPY_TRANSITION, listed)
            return Outcome.LEFT
        self._write_record(RecordType.POSTCOPY_TRANSITION, listed)
        if not self._reporter.transition():
            raise OSError(errno.EIO, "the postcopy transition callback failed")
        return Outcome.DONE

    def _end(self) -> Outcome:
        self._write_record(RecordType.END)
        if self._page_server is not None and self._postcopy is not None:
            name = self._page_server.let_go()
            if self._reporter.provides("page_server"):
                pages = self._sender().progress().pages
                self._reporter.tell("page_server", server=name, pages=pages, refusal="")
        self._reporter.info(
            f"Save successful: {self._statistics.pages} pages in {self._statistics.rounds} rounds, "
            f"{self._statistics.postcopy_pages} by postcopy, {self._out.sent} bytes"
        )
        return Outcome.DONE

    def _write_record(self, kind: RecordType, body: bytes = b"") -> None:
        self._out.write([encode_record(record_number(kind, VERSION), body)])

    # Log-dirty mode: on before the first page, off whatever happens.

    def _enable_logdirty(self) -> None:
        self._logdirty = True
        try:
            self._domain.logdirty_enable()
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            # It is on for VRAM tracking, or because a helper died without its error path.
            self._domain.logdirty_off()
            self._domain.logdirty_enable()

    def _enable_qemu_logdirty(self) -> None:
        if not self._reporter.provides("switch_qemu_logdirty"):
            return
        if self._reporter.call("switch_qemu_logdirty", domid=self._domain.domid, enable=1):
            raise OSError(errno.EIO, "could not enable the device model's log-dirty mode")
        self._qemu_logdirty = True

    def _cleanup(self) -> None:
        """Try every step; none of them changes the result of the save."""
        if self._logdirty:
            try:
                self._domain.logdirty_off()
            except OSError as error:
                self._complain(f"could not switch log-dirty mode off: {error}")
        if self._qemu_logdirty:
            try:
                failed = self._reporter.call(
                    "switch_qemu_logdirty", domid=self._domain.domid, enable=0
                )
            except OSError as error:
                self._complain(f"could not disable the device model's log-dirty mode: {error}")
            else:
                if failed:
                    self._complain("could not disable the device model's log-dirty mode")

    def _complain(self, text: str) -> None:
        self._reporter.event("cleanup_failed", error=text)
        try:
            self._reporter.log(XentoollogLevel.ERROR, text)
        except ChannelError:
            pass  # nobody is left to tell; the trace has it
