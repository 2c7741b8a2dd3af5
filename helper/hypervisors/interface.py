"""What a save, a restore and a toolstack ask of a hypervisor, under libxc's and libxl's names.

`Domain` and `Paging` are our own engine's part (libxc), `Host` and `ControlledDomain` are the
toolstack's (libxl). Not every hypervisor has the first two: on Xen the work on a domain's memory
is libxenguest's. Failures are `OSError` with the errno that libxc would leave. Page sets are
one-dimensional numpy arrays of pfns (uint64); bitmaps are numpy bool arrays with an element for
each pfn below `p2m_size`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pfns = NDArray[np.uint64]
    Bitmap = NDArray[np.bool_]
else:
    # For annotations alone: numpy is loaded by those who calculate with them. A toolstack that
    # leaves a domain's memory to others needs none of it.
    Pfns = Bitmap = Any

PAGE_SIZE = 4096


class ShutdownReason(IntEnum):
    """SHUTDOWN_*: why a domain is shut down."""

    POWEROFF = 0
    REBOOT = 1
    SUSPEND = 2
    CRASH = 3
    WATCHDOG = 4
    SOFT_RESET = 5


@dataclass(frozen=True)
class DomainInfo:
    """`xc_domaininfo_t`, as far as a save needs it. `hvm` is XEN_DOMINF_hvm_guest, true for a PVH
    domain too; `shutdown_reason` is None while it runs."""

    domid: int
    hvm: bool
    paused: bool
    dying: bool
    shutdown_reason: ShutdownReason | None
    nr_pages: int
    max_memkb: int


@dataclass(frozen=True)
class TscInfo:
    """The body of an X86_TSC_INFO record."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


@dataclass(frozen=True)
class PagingRequest:
    """A guest's access to an evicted page, or (`dropped`) its release of one."""

    pfn: int
    vcpu: int
    dropped: bool


class Paging(Protocol):
    """A domain's paging ring (xc_mem_paging_*, vm_event): the receiver side of postcopy."""

    def fileno(self) -> int:
        """A descriptor that polls readable while requests wait."""

    def evict(self, pfns: Pfns) -> None:
        """Take these pages out of the guest; their next access is a request (nominate, evict)."""

    def take_requests(self) -> list[PagingRequest]:
        """All requests that wait, without blocking; a page can be requested more than once."""

    def load(self, first: int, data: memoryview) -> None:
        """Put the contents of evicted pages in place, atomically for the guest, and wake vCPUs
        that wait for them: pfn `first` and its next ones, PAGE_SIZE octets of `data` for each."""

    def resume(self, requests: Sequence[PagingRequest]) -> None:
        """Let the vCPUs of requests go on that no load has answered (dropped pages, duplicates)."""

    def close(self) -> None:
        """Paging off. Pages that are still evicted stay so: the guest cannot run without them."""


class ControlledDomain(Protocol):
    """One domain, as libxc shows it to the toolstack."""

    domid: int

    def getinfo(self) -> DomainInfo:
        """xc_domain_getinfo_single. Raises ESRCH where the domain is gone."""

    def logdirty_off(self) -> None:
        """XEN_DOMCTL_SHADOW_OP_OFF. No error where it is off already."""

    def close(self) -> None:
        """Give up every mapping; the domain goes on."""


class Domain(ControlledDomain, Protocol):
    """One domain, as libxc shows it to our own engine."""

    def maximum_gpfn(self) -> int:
        """xc_domain_maximum_gpfn: the highest pfn; `p2m_size` is one more."""

    def logdirty_enable(self) -> None:
        """XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY. Raises EINVAL where it is on already."""

    def logdirty_clean(self, dirty: Bitmap) -> int:
        """XEN_DOMCTL_SHADOW_OP_CLEAN: fill `dirty`, start anew; returns the number of dirty pages.
        A page written at any time after the previous clean is in this one or in the next."""

    def get_pfn_type_batch(self, pfns: Pfns) -> NDArray[np.uint32]:
        """XEN_DOMCTL_PFINFO_* of each: 0 (NOTAB) or 0xD/0xE/0xF << 28 where there is no content."""

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """xenforeignmemory_map: the pages in the order given, runs of neighbours as one view.
        Raises EINVAL for a pfn without a page. The views hold until `foreign_unmap`."""

    def foreign_unmap(self, views: list[memoryview]) -> None:
        """Release what foreign_map gave."""

    def populate_physmap_exact(self, pfns: Pfns) -> None:
        """Give the domain pages at these pfns (those that have one keep it). Raises ENOMEM past
        max_memkb."""

    def hvm_getcontext(self) -> bytes:
        """xc_domain_hvm_getcontext: the registers, opaque to the engine.
        The domain stands still."""

    def hvm_setcontext(self, context: bytes) -> None:
        """xc_domain_hvm_setcontext: what `hvm_getcontext` gave, here or at another host."""

    def hvm_params(self) -> list[tuple[int, int]]:
        """(index, value) of each HVM parameter that is not 0, as xc_hvm_param_get gives them."""

    def hvm_param_set(self, index: int, value: int) -> None:
        """xc_hvm_param_set."""

    def tsc_info(self) -> TscInfo:
        """xc_domain_get_tsc_info."""

    def set_tsc_info(self, info: TscInfo) -> None:
        """xc_domain_set_tsc_info."""

    def cpu_policy(self) -> tuple[bytes, bytes]:
        """xc_get_cpu_policy: the CPUID leaves and the MSR entries, as their records carry them."""

    def set_cpu_policy(self, cpuid: bytes, msr: bytes) -> None:
        """xc_set_domain_cpu_policy; either may be empty: the stream had no such record."""

    def system_cpu_policy(self) -> bytes:
        """xc_get_system_cpu_policy: the CPUID leaves of all that a guest of its kind may be
        offered on this host."""

    def clear_page(self, pfn: int) -> None:
        """xc_clear_domain_page: used for the xenstore and console rings on restore."""

    def mem_paging_enable(self) -> Paging:
        """xc_mem_paging_enable and the ring. Raises EBUSY where it is on. The domain is paused."""


class GuestState(Enum):
    """What `list` shows of a domain."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    SHUT_DOWN = "shut down"
    """It has powered itself off, or waits to be made anew (reboot): there is nothing to run on."""


class SuspendState(Enum):
    """How far a request to suspend has come (control/shutdown)."""

    REQUESTED = "requested"
    ACKNOWLEDGED = "acknowledged"
    SUSPENDED = "suspended"
    REFUSED = "refused"
    CRASHED = "crashed"


class SuspendRequest(Protocol):
    """A request to suspend that is under way."""

    def fileno(self) -> int:
        """Polls readable when `state` may have changed."""

    def state(self) -> SuspendState:
        """Where the request stands now; does not block."""

    def withdraw(self) -> bool:
        """Take the request back (libxl: writes control/shutdown empty). True where the guest will
        not suspend for it any more, False where it has suspended or is about to."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class DomainSummary:
    """A row of `list`. `memory` in octets; `type` is libxl's (`pv`, `pvh`, `hvm`).

    `log_dirty` says whether log-dirty mode is on, None where the hypervisor does not tell.
    `workload` and `pid` are a simulated guest's, None for others. `uuid` goes with the guest from
    host to host, in lower case; None if its configuration has none.
    """

    domid: int
    name: str
    memory: int
    type: str
    workload: str | None
    state: GuestState
    log_dirty: bool | None
    pid: int | None
    uuid: str | None = None


@dataclass(frozen=True)
class GuestReport:
    """What is known of a guest, and what it says of itself. Times are CLOCK_MONOTONIC seconds, None
    where it never was. A guest that knows nothing of us says nothing: None in all that is its own.

    `pages_checked` counts page comparisons since the domain was made; `memory_ok` is False once
    one was wrong, and `crash` says which. Latencies (of accesses to evicted pages, measured in the
    guest) are in microseconds.
    """

    state: GuestState
    steps: int | None
    pages_checked: int | None
    memory_ok: bool | None
    crash: str | None
    suspended_at: float | None
    first_step_at: float | None
    fault_count: int | None
    fault_p50_us: float | None
    fault_p99_us: float | None


@dataclass(frozen=True)
class RestoreProgram:
    """A program of the host's own toolstack that makes a domain from a libxl stream on its stdin.

    `preface` are the octets that it wants ahead of the stream. Where it exits with 0, the domain is
    there, paused. An early end of its stdin makes it give up in order: then no domain is left. It
    starts the save helper whose path stands in the environment variable `helper_variable`.
    `complaint` picks the line that says best why it failed from those that it wrote to stderr.
    `environment` is for the program and its helper; `remark` is a line for people before it starts,
    empty where there is nothing to say.
    """

    command: tuple[str, ...]
    preface: bytes
    helper_variable: str
    complaint: Callable[[Sequence[str]], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


class Host(Protocol):
    """A host's domains, as libxl sees them. Names are unique on a host.

    Raises ProcessLookupError (ESRCH) for a domid that there is not, FileExistsError (EEXIST) for
    a name that is taken, TimeoutError (ETIMEDOUT) where a domain's process does not answer.
    """

    state_dir: Path
    """A directory of the host that the toolstack keeps its journal in."""

    def domains(self) -> list[DomainSummary]:
        """libxl_list_domain, without the control domain."""

    def find(self, name: str) -> int:
        """The domid of `name`. Raises ProcessLookupError."""

    def domain(self, domid: int) -> ControlledDomain:
        """The domain as libxc has it; the caller closes it."""

    def why_not_create(self, config: Mapping[str, Any]) -> str:
        """Why no domain of this configuration can be made here, as far as that can be known for
        certain before it is: what it is, and free memory. "" if nothing is known."""

    def why_no_postcopy(self) -> str:
        """Why no domain can be restored by postcopy here, with the way out; "" if it can."""

    def restore_program(self, config: Mapping[str, Any], name: str) -> RestoreProgram | None:
        """Where restoring is the host's own toolstack's: how it makes a domain `name` of `config`.
        None where it is ours: `create`, a helper, `restore_emulator`. Raises OSError where it is
        known already that this cannot be."""

    def create(self, config: Mapping[str, Any], name: str) -> int:
        """A new domain for a restore: paused, no pages, no registers. `config` is as `config`
        gives it. Raises ValueError for a configuration that cannot be."""

    def config(self, domid: int) -> dict[str, Any]:
        """The stored configuration, libxl_domain_config's JSON: what goes into the xl header."""

    def destroy(self, domid: int) -> None:
        """End the domain and all that belongs to it, whatever state it is in."""

    def clear_up(self) -> None:
        """Remove what processes left that died while they made or ended a domain."""

    def pause(self, domid: int) -> None:
        """libxl_domain_pause."""

    def unpause(self, domid: int) -> None:
        """libxl_domain_unpause. No error where it runs."""

    def rename(self, domid: int, name: str) -> None:
        """libxl_domain_rename. No error where that is its name."""

    def suspend_request(self, domid: int) -> SuspendRequest:
        """Ask the domain to suspend (the first half of libxl__domain_suspend); the caller closes
        the request."""

    def resume(self, domid: int) -> None:
        """libxl_domain_resume: a suspended domain runs on here. No error where it never
        suspended."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        """libxl__domain_common_switch_qemu_logdirty. No error where it is so already; nothing to do
        where there is no device model."""

    def suspend_emulator(self, domid: int, live: bool) -> None:
        """libxl__domain_suspend_device_model: the domain has just suspended; from here on its
        device model writes no memory of it. `live`: the domain is to go on elsewhere. `resume`
        undoes it. Nothing to do where there is no device model."""

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        """(path relative to the device model's xenstore directory, value) of each entry; empty
        where there is no device model."""

    def emulator_context(self, domid: int) -> bytes | None:
        """Save the device model's state (the domain is suspended); None where there is none."""

    def restore_emulator(
        self, domid: int, xenstore: Sequence[tuple[bytes, bytes]], context: bytes | None
    ) -> None:
        """Start the device model of a restored domain from what was saved."""

    def report(self, domid: int) -> GuestReport:
        """What is known of the guest now."""

    def verify(self, domid: int, timeout: float) -> GuestReport:
        """Have the guest compare every page of its memory now, and report."""
