"""What save and restore need from a hypervisor, under libxc's names: a domain and its paging.

A toolstack (`toolstack.hosts`) uses only `ControlledDomain`. Failures are `OSError` with the errno
that libxc would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Protocol
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.pfns import Pfns

if TYPE_CHECKING:
    from xen_save_helper.ipc_schema.streams.libxc_bodies import TscInfo

PAGE_SIZE = 4096

Bitmap = bytearray
"""An octet, 0 or 1, for each pfn below `p2m_size`."""


class ShutdownReason(IntEnum):
    """SHUTDOWN_*: why a domain is shut down."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


class DomainInfo(NamedTuple):
    """`xc_domaininfo_t`, as far as a save needs it. `hvm` is XEN_DOMINF_hvm_guest, true for a PVH
    domain too; `shutdown_reason` is None while it runs."""

    domid: int
    hvm: bool
    paused: bool
    dying: bool
    shutdown_reason: ShutdownReason | None
    nr_pages: int
    max_memkb: int
    paged_pages: int = 0
    """Evicted pages, which a pager still has to load."""
    vcpus: int = 1
    """One more than `max_vcpu_id`."""


class PagingRequest(NamedTuple):
    """An access to an evicted page, by the guest or by the control domain, which maps it; or
    (`dropped`) the guest's release of one."""

    pfn: int
    vcpu: int
    dropped: bool


class Paging(Protocol):
    """A domain's paging ring (xc_mem_paging_*, vm_event): the receiver side of postcopy."""

    loaded_at_once: int
    """Pages to load with one call if no vCPU waits for any of them: few, since a fault that
    comes meanwhile waits too, but enough that the call does not cost more than the pages."""

    own: Pfns
    """Pages that it has taken from the guest for itself."""

    def fileno(self) -> int:
        """A descriptor that polls readable while requests wait."""

    def evict(self, pfns: Pfns) -> None:
        """Take these pages out of the guest; their next access is a request (nominate, evict)."""

    def still_evicted(self, pfns: Pfns) -> Pfns:
        """Those of these pages that are evicted now, and those that the guest has given back."""

    def wake_all(self, evicted: Pfns) -> None:
        """Have every vCPU try again that another pager has left waiting: it is a request anew.
        `evicted` are all pages that are."""

    def take_requests(self) -> list[PagingRequest]:
        """All requests that wait, without blocking; a page can be requested more than once."""

    def load(self, first: int, data: memoryview) -> None:
        """Load the contents of evicted pages, atomically for the guest, and wake vCPUs that wait
        for them: from pfn `first` on, PAGE_SIZE bytes of `data` for each."""

    def resume(self, requests: Sequence[PagingRequest]) -> None:
        """Resume the vCPUs of requests that no load has answered (dropped pages, duplicates)."""

    def close(self) -> None:
        """Turn paging off. Pages that are still evicted stay so: the guest cannot run without
        them."""


class SuspendHold(Protocol):
    """Requests to suspend, shut down or reboot that others make of a domain stay hidden from it
    until they are let through. Whoever asks waits. Methods raise OSError."""

    def fileno(self) -> int:
        """A descriptor that polls readable when a request may have come, or been taken back."""

    def asked(self) -> str:
        """What the domain is asked for now, such as `suspend`; "" for nothing."""

    def let_through(self) -> str:
        """Let the domain see requests; returns the one that waits, as `asked` does."""

    def close(self) -> None:
        """Give up the connection; what has not been let through stays hidden."""


class ControlledDomain(Protocol):
    """One domain, as libxc shows it to the toolstack."""

    domid: int

    def getinfo(self) -> DomainInfo:
        """xc_domain_getinfo_single. Raises ESRCH if the domain is gone."""

    def logdirty_off(self) -> None:
        """XEN_DOMCTL_SHADOW_OP_OFF. It is not an error if the mode is off already."""

    def close(self) -> None:
        """Release every mapping; the domain goes on."""


class PageSource(Protocol):
    """Where a sender of pages has them from."""

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """xenforeignmemory_map: the pages in the order given, runs of neighbours as one view.
        Raises EINVAL for a pfn without a page. The views are valid until `foreign_unmap`. A
        second thread may map and unmap."""

    def foreign_unmap(self, views: list[memoryview]) -> None:
        """Release the views of a foreign_map."""


class Domain(ControlledDomain, PageSource, Protocol):
    """One domain, as libxc shows it to our own engine."""

    def version(self) -> tuple[int, int]:
        """xc_version(XENVER_version): the hypervisor's release, major and minor."""

    def maximum_gpfn(self) -> int:
        """xc_domain_maximum_gpfn: the highest pfn; `p2m_size` is one more."""

    def needed_at_once(self) -> Pfns:
        """The pages with a struct vcpu_info, which a postcopy must not leave behind: the hypervisor
        itself accesses them, and does not wait for an evicted one. The domain may be running."""

    def needed_by(self, context: bytes) -> dict[str, Pfns]:
        """Further such pages, by what they are: those that this HVM context of the domain names.
        It may name pages that the domain does not have."""

    def logdirty_enable(self) -> None:
        """XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY. Raises EINVAL if it is on already."""

    def logdirty_clean(self, dirty: Bitmap, *, final: bool = False) -> int:
        """XEN_DOMCTL_SHADOW_OP_CLEAN: fill `dirty`, start over; returns the number of dirty pages.
        A page written at any time after the previous clean is in this one or in the next. `final`
        (XEN_DOMCTL_SHADOW_LOGDIRTY_FINAL), for a domain that is suspended: so are pages that the
        hypervisor itself has mapped, and may have written."""

    def get_pfn_type_batch(self, pfns: Pfns) -> bytes:
        """The top octet of each one's XEN_DOMCTL_PFINFO_*: 0 (NOTAB), or 0xD0, 0xE0 or 0xF0 if it
        has no contents."""

    def populate_physmap_exact(self, pfns: Pfns, order: int = 0) -> None:
        """Give the domain pages that it lacks: 2^order from each of `pfns` on, which are multiples
        of that. Raises ENOMEM or EBUSY if there is not enough memory, or not in such pieces."""

    def hvm_getcontext(self) -> bytes:
        """xc_domain_hvm_getcontext: the registers, opaque to the engine. The domain must be paused
        or suspended."""

    def hvm_setcontext(self, context: bytes) -> None:
        """xc_domain_hvm_setcontext: a context from `hvm_getcontext`, here or at another host."""

    def hvm_param_get(self, index: int) -> int:
        """xc_hvm_param_get."""

    def hvm_param_set(self, index: int, value: int) -> None:
        """xc_hvm_param_set."""

    def tsc_info(self) -> TscInfo:
        """xc_domain_get_tsc_info."""

    def set_tsc_info(self, info: TscInfo) -> None:
        """xc_domain_set_tsc_info."""

    def cpu_policy(self) -> tuple[bytes, bytes]:
        """xc_get_cpu_policy: the CPUID leaves and the MSR entries, as in their records."""

    def set_cpu_policy(self, cpuid: bytes, msr: bytes) -> None:
        """xc_set_domain_cpu_policy; either is empty if the stream had no such record."""

    def system_cpu_policy(self) -> bytes:
        """xc_get_system_cpu_policy: the CPUID leaves of everything that a guest of its kind may be
        offered on this host."""

    def clear_pages(self, pfn: int, count: int = 1) -> None:
        """xc_clear_domain_pages: fill `count` pages from `pfn` on with zeros."""

    def console_init(self, pfn: int) -> None:
        """xc_dom_console_init: initialise the console's ring, to which nobody is connected. Before
        Xen 4.21 that is a cleared page."""

    def gnttab_seed(
        self, *, console_gfn: int, store_gfn: int, console_domid: int, store_domid: int
    ) -> None:
        """xc_dom_gnttab_seed: let the backends map the rings. The last step of a restore."""

    def mem_paging_enable(self) -> Paging:
        """xc_mem_paging_enable and the ring. Raises EBUSY if paging is on, and other errors if this
        domain cannot be paged here, with the reason. The domain must be paused; it may be without
        any memory yet."""

    def mem_paging_take_over(self) -> Paging:
        """Take the place of a pager that has died. Raises OSError: ENOTSUP where a domain does not
        outlive its pager, EBUSY if the other one's ring cannot be given up now, ESRCH."""

    def hold_suspend(self) -> SuspendHold | None:
        """Hide from the domain, which does not run yet, what others ask of it; None where nobody
        can save it but programs that refuse it while pages of it are missing."""
