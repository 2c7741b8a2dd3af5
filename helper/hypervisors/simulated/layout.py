"""The layout of a domain's shared memory: the domain page and the areas after it.

Each word has one writer at a time, and is written with one aligned store. The vCPU writes its own
state; the toolstack and the helper write what they would tell a hypervisor.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum
from typing import Final

PAGE_SIZE: Final = 4096

MAGIC: Final = 0x314D4F4453485358
"""Little-endian `XSHSDOM1`; changes with the layout."""

MIN_CAPACITY: Final = 1 << 20
"""Pfns that every domain has room for: a real guest has its special pages just below 4 GiB."""

CONTEXT_AREA: Final = 1 << 20
POLICY_AREA: Final = 1 << 16
"""Bytes that an HVM context, and each of the two CPU policies, can have."""

HOST_KHZ: Final = 2_400_000
"""The frequency of a simulated host's TSC."""

HVM_NR_PARAMS: Final = 64
"""Xen 4.17 has 39."""

BUCKETS_PER_OCTAVE: Final = 8
FAULT_BUCKETS: Final = 40 * BUCKETS_PER_OCTAVE
"""Buckets of the histogram of fault latencies in nanoseconds, each 2**(1/8) wide: at most 4.5 %
off."""

RUNS: Final = -1
"""`shutdown` of a domain that is not shut down; else a ShutdownReason."""

NOT_REGISTERED: Final = -1
"""`vcpu_info` of a domain whose guest has not registered one since the domain was created."""


class P2M(IntEnum):
    """The state of a pfn."""

    ABSENT = 0
    POPULATED = 1
    PAGED_OUT = 2


class Behaviour(IntEnum):
    """How a guest reacts to a request to suspend."""

    NORMAL = 0
    REFUSE = 1
    """It never acknowledges it."""
    LATE = 2
    """It acknowledges it, and suspends, after `behaviour_seconds`."""
    DIE = 3
    """Crashes."""


class HvmParam(IntEnum):
    """The HVM_PARAM_* that the simulation sets."""

    STORE_PFN = 1
    STORE_EVTCHN = 2
    PAE_ENABLED = 4
    IOREQ_PFN = 5
    BUFIOREQ_PFN = 6
    TIMER_MODE = 10
    CONSOLE_PFN = 17
    CONSOLE_EVTCHN = 18


class DomainPage(ctypes.Structure):
    """The hypervisor-visible state of one domain."""

    magic: int
    domid: int
    hvm: int
    capacity: int
    max_memkb: int
    nr_pages: int
    maximum_gpfn: int

    paused: int
    shutdown: int
    behaviour: int
    behaviour_seconds: float

    logdirty_epoch: int
    """Counts switches of log-dirty mode, which is on while this is odd."""
    qemu_logdirty: int
    paging: int

    context_length: int
    context_fresh: int
    """Whether hvm_setcontext left registers that the vCPU has not taken yet."""
    cpuid_length: int
    msr_length: int
    tsc_mode: int
    tsc_khz: int
    tsc_nsec: int
    tsc_incarnation: int
    hvm_params: ctypes.Array[ctypes.c_uint64]
    vcpu_info: int
    """Pfn of the page with the vCPU's struct vcpu_info, or NOT_REGISTERED."""

    suspend_wanted: int
    """Number of the pending request to suspend, 0 for none. Changes under the suspend lock."""
    suspend_acknowledged: int
    """Number of the request that the guest acted on last. Under the suspend lock."""
    suspend_count: int
    """Requests ever made. Under the suspend lock."""

    steps: int
    pages_checked: int
    memory_wrong: int
    suspended_at: float
    first_step_at: float
    crash: bytes
    faults: int
    fault_histogram: ctypes.Array[ctypes.c_uint32]

    _fields_ = [
        ("magic", ctypes.c_uint64),
        ("domid", ctypes.c_uint32),
        ("hvm", ctypes.c_uint32),
        ("capacity", ctypes.c_uint64),
        ("max_memkb", ctypes.c_uint64),
        ("nr_pages", ctypes.c_uint64),
        ("maximum_gpfn", ctypes.c_uint64),
        ("paused", ctypes.c_uint32),
        ("shutdown", ctypes.c_int32),
        ("behaviour", ctypes.c_uint32),
        ("behaviour_seconds", ctypes.c_double),
        ("logdirty_epoch", ctypes.c_uint32),
        ("qemu_logdirty", ctypes.c_uint32),
        ("paging", ctypes.c_uint32),
        ("context_length", ctypes.c_uint32),
        ("context_fresh", ctypes.c_uint32),
        ("cpuid_length", ctypes.c_uint32),
        ("msr_length", ctypes.c_uint32),
        ("tsc_mode", ctypes.c_uint32),
        ("tsc_khz", ctypes.c_uint32),
        ("tsc_incarnation", ctypes.c_uint32),
        ("tsc_nsec", ctypes.c_uint64),
        ("hvm_params", ctypes.c_uint64 * HVM_NR_PARAMS),
        ("vcpu_info", ctypes.c_int64),
        ("suspend_wanted", ctypes.c_uint64),
        ("suspend_acknowledged", ctypes.c_uint64),
        ("suspend_count", ctypes.c_uint64),
        ("steps", ctypes.c_uint64),
        ("pages_checked", ctypes.c_uint64),
        ("memory_wrong", ctypes.c_uint64),
        ("suspended_at", ctypes.c_double),
        ("first_step_at", ctypes.c_double),
        ("crash", ctypes.c_char * 512),
        ("faults", ctypes.c_uint64),
        ("fault_histogram", ctypes.c_uint32 * FAULT_BUCKETS),
    ]

    @property
    def stands_still(self) -> bool:
        """Whether the vCPU takes no steps."""
        return bool(self.paused) or self.shutdown != RUNS


CONTEXT_OFFSET: Final = 2 * PAGE_SIZE
CPUID_OFFSET: Final = CONTEXT_OFFSET + CONTEXT_AREA
MSR_OFFSET: Final = CPUID_OFFSET + POLICY_AREA
DOMAIN_SIZE: Final = MSR_OFFSET + POLICY_AREA
"""Bytes in the memfd that holds the domain page and the areas."""

assert ctypes.sizeof(DomainPage) <= CONTEXT_OFFSET
