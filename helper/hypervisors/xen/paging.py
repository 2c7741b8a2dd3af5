"""interface.Paging of a real domain: Xen's memory paging, for HVM and PVH guests.

The process that turns it on is the pager. Rules and numbers are those of Xen's vm_event.c and
mem_paging.c; xenpaging, of Xen's own tools, is another pager.
"""

from __future__ import annotations

import ctypes
import errno
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress

from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, DomainInfo, PagingRequest
from xen_save_helper.helper.hypervisors.xen.event_channel import EventChannel
from xen_save_helper.helper.hypervisors.xen.foreign_memory import ForeignMemory
from xen_save_helper.helper.hypervisors.xen.paging_calls import (
    EVICTED_AT_ONCE,
    LOADED_AT_ONCE,
    PagingCalls,
)
from xen_save_helper.helper.hypervisors.xen.paging_ring import (
    INTERFACE_VERSION,
    REASON_MEM_PAGING,
    VCPU_PAUSED,
    PagingRing,
    RingRequest,
)
from xen_save_helper.ipc_schema.hints import Final, Protocol
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of

_PAGING_RING_PFN: Final = 27
"""HVM_PARAM_PAGING_RING_PFN."""
_USUAL_RING: Final = 0xFEFF8
"""Where libxl has it (special_pfn(SPECIALPAGE_PAGING) of xg_dom_x86.c)."""

_TYPES_AT_ONCE: Final = 1024
_MOST: Final = LOADED_AT_ONCE * PAGE_SIZE

_XTAB: Final = 0xF << 28

_EVICT_SECONDS: Final = 0.5
"""The longest that a page which is in use is waited for."""
_TURN_OFF_SECONDS: Final = 0.5
"""The longest that vCPUs which wait for a place in the ring are given to take it."""
_PAUSE: Final = 0.001

_REFUSALS: Final = {
    errno.ENOSYS: "this Xen is not built with memory paging (CONFIG_MEM_PAGING)",
    errno.EOPNOTSUPP: "dom0 is PVH, and Xen pages domains only for a PV dom0",
    errno.ENODEV: "it uses shadow page tables, and Xen pages only domains with HAP",
    errno.EMLINK: "it uses the IOMMU, for a device that is passed through to it",
    errno.EXDEV: "its memory is populated on demand",
    errno.EBUSY: "it already has a pager",
}
"""Why xc_mem_paging_enable fails (vm_event_domctl)."""

Call = Callable[..., int]
"""A function of libxenctrl by name, with its arguments after the domid. Raises OSError."""


class PagedDomain(Protocol):
    """What paging needs of a domain besides."""

    domid: int

    def getinfo(self) -> DomainInfo: ...
    def hvm_param_get(self, index: int) -> int: ...
    def hvm_param_set(self, index: int, value: int) -> None: ...


class XenPaging:
    """A domain's paging, from xc_mem_paging_enable to `close`. For one thread.

    Memory for the pages that are evicted is claimed, so that no other domain can take it. Raises
    OSError if Xen cannot page this domain, with the reason, or if a library is missing.
    """

    loaded_at_once = 16
    """As many as a sender's smallest record has (postcopy_pages.POSTCOPY_BATCH)."""

    def __init__(
        self, domain: PagedDomain, call: Call, memory: ForeignMemory, *, take_over: bool = False
    ) -> None:
        """`take_over`: another pager has died."""
        self._domain = domain
        self._domid = domain.domid
        self._call = call
        self._memory = memory
        self._waiting: dict[int, list[RingRequest]] = {}
        """Requests of paused vCPUs that have had no response, by pfn."""
        self._to_wake: list[int] = []
        """vCPUs that may wait for a pager which has died."""
        self._mapping: threading.Thread | None = None
        self._unanswered = 0
        """Requests that are to get no response, since there was one already."""
        self._claimed = take_over
        self._enabled = False
        with ExitStack() as undo:
            if take_over:
                self._enable_anew(undo)
            else:
                self._enable(undo)
            self._undo = undo.pop_all()

    def _enable_anew(self, undo: ExitStack) -> None:
        """The ring of a pager that has died cannot be had, since it is no page of the guest, and
        what was in it is lost. Without a ring a guest that accesses an evicted page is crashed, so
        it is paused."""
        self._call("xc_domain_pause")
        try:
            self._call("xc_mem_paging_disable")
            self._enable(undo)
        finally:
            self._try("xc_domain_unpause")

    def _enable(self, undo: ExitStack) -> None:
        """xc_vm_event_enable, for a domain that is paused; and the event channel."""
        self._calls = PagingCalls(self._domid)
        undo.callback(self._calls.close)
        self._ring_pfn = self._choose_ring(undo)
        self.own = pfns_of([self._ring_pfn])
        kind = _one(self._ring_pfn)
        self._call("xc_get_pfn_type_batch", 1, kind)
        pages = 1, 0, _one(self._ring_pfn)
        with ExitStack() as take_back:
            if kind[0] & _XTAB == _XTAB:
                self._call("xc_domain_populate_physmap_exact", 1, 0, 0, _one(self._ring_pfn))
                take_back.callback(self._try, "xc_domain_decrease_reservation_exact", *pages)
            self._start(undo)
            # The guest has no business with it.
            self._call("xc_domain_decrease_reservation_exact", *pages)
            take_back.pop_all()

    def _choose_ring(self, undo: ExitStack) -> int:
        pfn = self._domain.hvm_param_get(_PAGING_RING_PFN)
        if pfn:
            return pfn
        # No state has been restored yet.
        self._domain.hvm_param_set(_PAGING_RING_PFN, _USUAL_RING)
        undo.callback(self._forget_ring)
        return _USUAL_RING

    def _forget_ring(self) -> None:
        with suppress(OSError):
            self._domain.hvm_param_set(_PAGING_RING_PFN, 0)

    def _start(self, undo: ExitStack) -> None:
        """Turn paging on, with the ring's page in place."""
        view = self._memory.map(pfns_of([self._ring_pfn]), writable=True)
        undo.callback(self._memory.unmap, view)
        self._ring = PagingRing(view)
        undo.callback(self._ring.close)
        port = ctypes.c_uint32()
        try:
            self._call("xc_mem_paging_enable", ctypes.byref(port))
        except OSError as error:
            reason = _REFUSALS.get(error.errno or 0)
            if reason is None:
                raise
            raise OSError(
                error.errno, f"domain {self._domid} cannot be paged, for postcopy: {reason}"
            ) from error
        self._enabled = True
        undo.callback(self._disable)
        self._events = EventChannel(self._domid, port.value)
        undo.callback(self._events.close)

    def fileno(self) -> int:
        return self._events.fileno()

    def evict(self, pfns: Pfns) -> None:
        """Raises OSError: EBUSY for a page that stays in use, by a mapping or a grant, or a pfn
        without one; ENOMEM if the memory has been taken meanwhile; ESRCH if the domain is gone.

        The ring's own page, which is no longer the guest's, is passed over.
        """
        if not pfns:
            return
        refused = []
        for start in range(0, len(pfns), EVICTED_AT_ONCE):
            refused += self._calls.evict(pfns[start : start + EVICTED_AT_ONCE])
            if not start:
                self._claim()
        for gfn in refused:
            if gfn != self._ring_pfn:
                self._evict_again(gfn)

    def _claim(self) -> None:
        """Claim memory for all that is evicted (domain_set_outstanding_pages). A claim can only be
        made anew: it is for a total, each page that the domain gets is taken from it, and up to
        Xen 4.21 alone, each that it gives up is added."""
        info = self._domain.getinfo()
        if not info.paged_pages:
            return
        self._claimed = True
        self._call("xc_domain_claim_pages", 0)
        self._call("xc_domain_claim_pages", info.nr_pages + info.paged_pages)

    def _evict_again(self, gfn: int) -> None:
        deadline = time.monotonic() + _EVICT_SECONDS
        while not self._calls.evict_again(gfn):
            if time.monotonic() > deadline:
                raise OSError(
                    errno.EBUSY,
                    f"pfn {gfn:#x} of domain {self._domid} cannot be left behind: it has no page, "
                    "or somebody has it mapped",
                )
            time.sleep(_PAUSE)

    def still_evicted(self, pfns: Pfns) -> Pfns:
        found = []
        for start in range(0, len(pfns), _TYPES_AT_ONCE):
            part = pfns[start : start + _TYPES_AT_ONCE]
            kinds = (ctypes.c_uint64 * len(part))(*part)
            self._call("xc_get_pfn_type_batch", len(part), kinds)
            found += [pfn for pfn, kind in zip(part, kinds, strict=True) if kind & _XTAB == _XTAB]
        return pfns_of(found)

    def wake_all(self, evicted: Pfns) -> None:
        """A response wakes the vCPU that it names, whatever its request was; without a request Xen
        would take the ring to have a place more than it has. So pages are mapped, whose requests
        need no response of their own. A page that a vCPU waits for makes none."""
        self._to_wake = list(range(self._domain.getinfo().vcpus))
        taken = evicted[: len(self._to_wake)]
        self._mapping = threading.Thread(target=self._map, args=(taken,), daemon=True)
        self._mapping.start()

    def _map(self, pfns: Pfns) -> None:
        """Returns once they have been loaded."""
        with suppress(OSError), closing(ForeignMemory(self._domid)) as memory:
            memory.unmap(memory.map(pfns, writable=False))

    def _wake_the_rest(self) -> None:
        """There were too few pages. The next requests that need no response get none."""
        if self._to_wake and self._mapping is not None and not self._mapping.is_alive():
            self._unanswered = len(self._to_wake)
            self._ring.answer([_waking(vcpu) for vcpu in self._to_wake])
            self._events.notify()
            self._to_wake = []

    def take_requests(self) -> list[PagingRequest]:
        """Those of dom0, for a page that it wants to map, are among them; their `vcpu` is
        dom0's."""
        self._events.clear()
        requests = self._ring.take()
        if not requests:
            return []
        free = []
        for request in requests:
            if request.waits:
                self._waiting.setdefault(request.pfn, []).append(request)
            elif self._to_wake:
                free.append(_waking(self._to_wake.pop(), request))
            elif self._unanswered:
                self._unanswered -= 1
            else:
                # Nobody waits for the response, but the ring's place is needed.
                free.append(request)
        self._answer(free)
        return [
            PagingRequest(request.pfn, request.vcpu, dropped=request.dropped)
            for request in requests
        ]

    def load(self, first: int, data: memoryview) -> None:
        """Pages that are not paged out, as those that the guest has given back, are skipped.

        Whoever saves the domain live has taken these pages for holes, if it has looked at them
        already. So they count as dirty, and are sent in a later round.

        Raises OSError: EINVAL for a partial page, ENOMEM if there is no memory for it, ESRCH if the
        domain is gone.
        """
        size = data.nbytes
        if size % PAGE_SIZE:
            raise OSError(errno.EINVAL, f"{size} bytes are not whole pages")
        if size <= _MOST:
            self._calls.load(first, data)
        else:
            for start in range(0, size, _MOST):
                part = data[start : start + _MOST]
                self._calls.load(first + start // PAGE_SIZE, part)
        self._mark_dirty(first, size // PAGE_SIZE)
        self._wake_the_rest()
        if self._waiting:
            self._answer_for(range(first, first + size // PAGE_SIZE))

    def _mark_dirty(self, first: int, pages: int) -> None:
        """Xen does nothing where dirty pages are not logged (modified_memory in dm.c). It takes the
        domain's highest page for one beyond the end (EINVAL), until there has been a higher one."""
        what = "xc_hvm_modified_memory", first, pages
        try:
            self._call(*what)
            return
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        above = first + pages
        # The page is in place. Without memory for this it has no mark, which is no reason to end.
        with suppress(OSError):
            self._call("xc_domain_populate_physmap_exact", 1, 0, 0, _one(above))
            self._try("xc_domain_decrease_reservation_exact", 1, 0, _one(above))
            self._call(*what)

    def resume(self, requests: Sequence[PagingRequest]) -> None:
        self._answer_for([request.pfn for request in requests])

    def _answer_for(self, pfns: Sequence[int]) -> None:
        answered: list[RingRequest] = []
        for pfn in pfns:
            answered += self._waiting.pop(pfn, ())
        self._answer(answered)

    def _answer(self, requests: Sequence[RingRequest]) -> None:
        if requests:
            self._ring.answer(requests)
            self._events.notify()

    def close(self) -> None:
        """Turn paging off, and give up the claim. A vCPU that waits for a page which is still
        evicted waits for ever, and one that accesses such a page later is the domain's end."""
        with self._undo.pop_all():
            if self._enabled:
                with suppress(OSError):
                    self._finish()

    def _finish(self) -> None:
        """Let go on the vCPUs that need not wait, and turn paging off: Xen refuses that with EBUSY
        while a vCPU waits for a place in the ring (vm_event_disable)."""
        if self._claimed:
            self._try("xc_domain_claim_pages", 0)
        deadline = time.monotonic() + _TURN_OFF_SECONDS
        while self._enabled:
            self.take_requests()
            self._wake_the_rest()
            if not self._domain.getinfo().paged_pages:
                self._answer_for(list(self._waiting))
            try:
                self._call("xc_mem_paging_disable")
                self._enabled = False
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def _disable(self) -> None:
        if self._enabled:
            self._enabled = False
            self._try("xc_mem_paging_disable")

    def _try(self, function: str, *arguments: object) -> None:
        """What cannot be undone goes with the domain, which may be gone already."""
        with suppress(OSError):
            self._call(function, *arguments)


def _waking(vcpu: int, request: RingRequest | None = None) -> RingRequest:
    """What to answer to have this vCPU try again, if it waits."""
    request = request or RingRequest(INTERFACE_VERSION, 0, REASON_MEM_PAGING, vcpu, 0, 0)
    return request._replace(vcpu=vcpu, flags=VCPU_PAUSED)


def _one(pfn: int) -> ctypes.Array[ctypes.c_uint64]:
    return (ctypes.c_uint64 * 1)(pfn)
