"""interface.Domain for a simulated host."""

from __future__ import annotations

import errno
import mmap
from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors.interface import Bitmap, Paging
from xen_save_helper.helper.hypervisors.simulated import control, layout
from xen_save_helper.helper.hypervisors.simulated.domain_files import (
    check_host,
    domain_path,
    read_lacks,
)
from xen_save_helper.helper.hypervisors.simulated.layout import P2M, PAGE_SIZE
from xen_save_helper.helper.hypervisors.simulated.log_dirty import LogDirty
from xen_save_helper.helper.hypervisors.simulated.open_domain import ANSWER_LIMIT, OpenDomain
from xen_save_helper.ipc_schema.streams.cpu_features import all_but
from xen_save_helper.ipc_schema.streams.libxc_bodies import TscInfo
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import Pfns, highest, is_run, pfns_of, run_of, runs_of

VERSION: Final = (4, 17)
"""The Xen release that a simulated host's streams name."""

_TYPES: Final = bytes(
    type_octet(PageType.XTAB if state == P2M.ABSENT else PageType.NOTAB) for state in range(256)
)
"""For each layout.P2M value."""


def open_on_host(host: Path, domid: int) -> SimulatedDomain:
    """Domain `domid` of the host in the directory `host`. Raises ProcessLookupError, and
    FileNotFoundError or NotADirectoryError if that is not a host."""
    check_host(host.absolute())
    return SimulatedDomain(domain_path(host.absolute(), domid), domid, ANSWER_LIMIT)


class SimulatedDomain(OpenDomain):
    """One domain with the operations on its log-dirty mode, its memory and its registers."""

    def __init__(self, path: Path, domid: int, timeout: float) -> None:
        """See OpenDomain."""
        self._host = path.parent.parent
        self._log_dirty: LogDirty | None = None
        self._logdirty_epoch = 0
        super().__init__(path, domid, timeout)

    def close(self) -> None:
        self._log_dirty = None
        super().close()

    def version(self) -> tuple[int, int]:
        return VERSION

    def maximum_gpfn(self) -> int:
        return self.shared.domain.maximum_gpfn

    def needed_at_once(self) -> Pfns:
        """The page that the guest has registered for its `vcpu_info`: see there."""
        pfn = self.shared.domain.vcpu_info
        return pfns_of() if pfn == layout.NOT_REGISTERED else pfns_of([pfn])

    def needed_by(self, context: bytes) -> dict[str, Pfns]:
        """None: a simulated guest has no page tables."""
        return {}

    # -- log-dirty ------------------------------------------------------------------------------

    def logdirty_enable(self) -> None:
        domain = self.shared.domain
        if domain.logdirty_epoch % 2:
            raise OSError(errno.EINVAL, f"log-dirty mode of domain {self.domid} is on already")
        self._log_dirty = LogDirty(self.shared.counters, domain.maximum_gpfn + 1)
        self._logdirty_epoch = domain.logdirty_epoch + 1
        domain.logdirty_epoch = self._logdirty_epoch

    def logdirty_off(self) -> None:
        super().logdirty_off()
        self._log_dirty = None

    def logdirty_clean(self, dirty: Bitmap, *, final: bool = False) -> int:
        """Raises EINVAL if this object has not turned log-dirty mode on, or another turned it
        off."""
        del final  # what its hypervisor writes is logged
        epoch = self.shared.domain.logdirty_epoch
        if self._log_dirty is None or epoch != self._logdirty_epoch:
            raise OSError(errno.EINVAL, f"log-dirty mode of domain {self.domid} is off")
        self._log_dirty.clean(dirty)
        return dirty.count(1)

    # -- memory ---------------------------------------------------------------------------------

    def _states(self, pfns: Pfns) -> bytes:
        """The layout.P2M value of each."""
        states = self.shared.states
        if pfns and pfns[-1] < len(states) and is_run(pfns):
            return states[pfns[0] : pfns[-1] + 1]
        return bytes(states[pfn] if pfn < len(states) else P2M.ABSENT for pfn in pfns)

    def _populated(self, pfns: Pfns) -> bool:
        return self._states(pfns).count(P2M.POPULATED) == len(pfns)

    def get_pfn_type_batch(self, pfns: Pfns) -> bytes:
        """NOTAB for a page, paged out or not; XTAB if there is none."""
        return self._states(pfns).translate(_TYPES)

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        if not self._populated(pfns):
            states = self._states(pfns)
            pfn, state = next(
                one for one in zip(pfns, states, strict=True) if one[1] != P2M.POPULATED
            )
            what = "is paged out" if state == P2M.PAGED_OUT else "has no page"
            raise OSError(errno.EINVAL, f"pfn {pfn:#x} of domain {self.domid} {what}")
        views = []
        with memoryview(self.shared.memory) as whole:
            for first, count, _ in runs_of(pfns):
                begin, end = first * PAGE_SIZE, (first + count) * PAGE_SIZE
                self.shared.make_ready(begin, end - begin, writable=writable)
                view = whole[begin:end]
                views.append(view if writable else view.toreadonly())
        return views

    def foreign_unmap(self, views: list[memoryview]) -> None:
        for view in views:
            view.release()

    def populate_physmap_exact(self, pfns: Pfns, order: int = 0) -> None:
        """Memory is taken when it is written. Raises EINVAL for a pfn that does not fit, ENOMEM."""
        if not pfns:
            return
        if order:
            extents, pfns = pfns, pfns_of()
            for pfn in extents:
                pfns.extend(run_of(pfn, 1 << order))
        shared, domain = self.shared, self.shared.domain
        if (last := highest(pfns)) >= len(shared.states):
            raise OSError(
                errno.EINVAL, f"pfn {last:#x} is past the {len(shared.states):#x} that fit"
            )
        new = pfns
        if self._states(pfns).count(P2M.ABSENT) != len(pfns) or not is_run(pfns):
            new = pfns_of(pfn for pfn in sorted(set(pfns)) if shared.states[pfn] == P2M.ABSENT)
        if domain.nr_pages + len(new) > domain.max_memkb // 4:
            raise OSError(
                errno.ENOMEM,
                f"domain {self.domid} has {domain.nr_pages} pages; {len(new)} more are past its "
                f"limit of {domain.max_memkb} KiB",
            )
        for first, count, _ in runs_of(new):
            shared.states[first : first + count] = bytes([P2M.POPULATED]) * count
        domain.nr_pages += len(new)
        domain.maximum_gpfn = max(domain.maximum_gpfn, last)

    def clear_pages(self, pfn: int, count: int = 1) -> None:
        """Give their memory back. Raises EINVAL if one of them does not exist."""
        if not self._populated(run_of(pfn, count)):
            raise OSError(errno.EINVAL, f"pfn {pfn:#x} of domain {self.domid} has no page")
        self.shared.memory.madvise(mmap.MADV_REMOVE, pfn * PAGE_SIZE, count * PAGE_SIZE)

    def console_init(self, pfn: int) -> None:
        """A simulated guest has no console backend: the page is cleared."""
        self.clear_pages(pfn)

    def gnttab_seed(
        self, *, console_gfn: int, store_gfn: int, console_domid: int, store_domid: int
    ) -> None:
        """A simulated host maps rings without grants."""

    def mem_paging_enable(self) -> Paging:
        """Raises EINVAL if the domain runs, OSError if there is no userfaultfd."""
        from xen_save_helper.helper.hypervisors.simulated.paging import open_paging

        shared = self.shared
        if shared.domain.paging:
            raise OSError(errno.EBUSY, f"paging of domain {self.domid} is on already")
        return open_paging(shared, control.connect(self._directory, self._timeout))

    def mem_paging_take_over(self) -> Paging:
        raise OSError(
            errno.ENOTSUP, f"domain {self.domid} is a simulated one, which ends with its pager"
        )

    def hold_suspend(self) -> None:
        """Only helpers of ours save it."""

    # -- registers and the rest -----------------------------------------------------------------

    def hvm_getcontext(self) -> bytes:
        """Raises EBUSY while the vCPU runs, ENODATA if it never had registers."""
        domain = self.shared.domain
        if not domain.stands_still:
            raise OSError(errno.EBUSY, f"domain {self.domid} runs; pause or suspend it first")
        if not domain.context_length:
            raise OSError(errno.ENODATA, f"domain {self.domid} has no registers")
        return self.shared.read_area(layout.CONTEXT_OFFSET, domain.context_length)

    def hvm_setcontext(self, context: bytes) -> None:
        """Raises EINVAL for an empty or too long one, EBUSY while the domain runs."""
        domain = self.shared.domain
        if not 0 < len(context) <= layout.CONTEXT_AREA:
            raise OSError(errno.EINVAL, f"an HVM context of {len(context)} bytes")
        if not domain.stands_still:
            raise OSError(errno.EBUSY, f"domain {self.domid} runs; pause or suspend it first")
        self.shared.write_area(layout.CONTEXT_OFFSET, context)
        domain.context_length = len(context)
        domain.context_fresh = 1

    def hvm_param_get(self, index: int) -> int:
        """Raises EINVAL for an unknown index."""
        return self.shared.domain.hvm_params[self._hvm_param(index)]

    def hvm_param_set(self, index: int, value: int) -> None:
        """Raises EINVAL for an unknown index."""
        self.shared.domain.hvm_params[self._hvm_param(index)] = value

    @staticmethod
    def _hvm_param(index: int) -> int:
        if not 0 <= index < layout.HVM_NR_PARAMS:
            raise OSError(errno.EINVAL, f"there is no HVM parameter {index}")
        return index

    def tsc_info(self) -> TscInfo:
        domain = self.shared.domain
        return TscInfo(domain.tsc_mode, domain.tsc_khz, domain.tsc_nsec, domain.tsc_incarnation)

    def set_tsc_info(self, info: TscInfo) -> None:
        domain = self.shared.domain
        domain.tsc_mode, domain.tsc_khz = info.mode, info.khz
        domain.tsc_nsec, domain.tsc_incarnation = info.nsec, info.incarnation

    def cpu_policy(self) -> tuple[bytes, bytes]:
        shared = self.shared
        return (
            shared.read_area(layout.CPUID_OFFSET, shared.domain.cpuid_length),
            shared.read_area(layout.MSR_OFFSET, shared.domain.msr_length),
        )

    def system_cpu_policy(self) -> bytes:
        return all_but(read_lacks(self._host))

    def set_cpu_policy(self, cpuid: bytes, msr: bytes) -> None:
        """Raises EINVAL for one that is not an array of entries, or too long."""
        for data, entry, what in ((cpuid, 24, "CPUID leaves"), (msr, 16, "MSR entries")):
            if len(data) % entry or len(data) > layout.POLICY_AREA:
                raise OSError(errno.EINVAL, f"{len(data)} bytes of {what} of {entry} each")
        self.shared.store_policy(cpuid, msr)
