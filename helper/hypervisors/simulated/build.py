"""How a domain is built: its defaults, its first registers, its special pages."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Collection, Mapping
from typing import Any, Final

from xen_save_helper.helper.hypervisors.simulated import layout, vcpu_info
from xen_save_helper.helper.hypervisors.simulated.config import MAXMEM_CONSTANT
from xen_save_helper.helper.hypervisors.simulated.kinds import DEFAULT_RATES, NAMES
from xen_save_helper.helper.hypervisors.simulated.layout import DomainPage, HvmParam
from xen_save_helper.helper.hypervisors.simulated.registers import Registers
from xen_save_helper.helper.hypervisors.simulated.shared import SharedMemory
from xen_save_helper.ipc_schema.streams.cpu_features import without

SPECIAL_PAGES: Final = (
    HvmParam.STORE_PFN,
    HvmParam.CONSOLE_PFN,
    HvmParam.IOREQ_PFN,
    HvmParam.BUFIOREQ_PFN,
)
"""HVM parameters that name a page. A fresh guest has these pages right after its memory."""

_NO_SUBLEAF: Final = 0xFFFFFFFF

_CPUID: Final = (
    (0x0, _NO_SUBLEAF, 0x1, 0x756E6547, 0x6C65746E, 0x49656E69),
    (0x1, _NO_SUBLEAF, 0x000306F2, 0x00010800, 0xF7FA3203, 0x1FC9CBF5),
    (0x80000000, _NO_SUBLEAF, 0x80000001, 0, 0, 0),
    (0x80000001, _NO_SUBLEAF, 0, 0, 0x00000021, 0x2C100800),
)
"""leaf, subleaf, eax, ebx, ecx, edx (xen_cpuid_leaf_t)."""

_MSRS: Final = ((0xCE, 0, 1 << 31), (0x10A, 0, 0))
"""index, flags, value (xen_msr_entry_t): PLATFORM_INFO, ARCH_CAPABILITIES."""


def build_domain(
    shared: SharedMemory,
    domid: int,
    config: Mapping[str, Any],
    capacity: int,
    lacks: Collection[str],
) -> None:
    """Set up a domain page as xc_domain_create leaves it: paused, no pages, no registers. The
    domain is not offered CPU features that its host `lacks`."""
    domain: DomainPage = shared.domain
    build_info = config["b_info"]
    domain.domid = domid
    domain.hvm = config["c_info"]["type"] == "hvm"
    domain.capacity = capacity
    video_memkb = max(0, build_info.get("video_memkb", 0))
    domain.max_memkb = build_info["max_memkb"] + video_memkb + MAXMEM_CONSTANT
    domain.paused = 1
    domain.shutdown = layout.RUNS
    domain.tsc_khz = layout.HOST_KHZ
    shared.store_policy(
        without(b"".join(struct.pack("<6I", *leaf) for leaf in _CPUID), lacks),
        b"".join(struct.pack("<IIQ", *entry) for entry in _MSRS),
    )
    domain.hvm_params[HvmParam.PAE_ENABLED] = 1
    domain.hvm_params[HvmParam.TIMER_MODE] = 1
    domain.vcpu_info = layout.NOT_REGISTERED
    domain.magic = layout.MAGIC


def fresh_registers(request: Mapping[str, Any]) -> Registers:
    """The registers of a new guest, as the `request` "build" asks for."""
    kind = NAMES[request["workload"]]
    rate = request["rate"]
    return Registers(
        kind=kind,
        seed=request["seed"],
        rate=DEFAULT_RATES[kind] if rate is None else float(rate),
        pages=request["pages"],
        present=request["pages"],
        writes=0,
        steps=0,
        pages_checked=0,
        # Memory is sent from pfn 0 on: who looks at it from there meets only what has come.
        sweep=request["pages"] // 2,
        token=secrets.token_bytes(16),
        # Far from where a sweep and a sender start, and from what is given back first.
        vcpu_info=request["pages"] // 4,
        vcpu_info_version=vcpu_info.FIRST_VERSION,
    )


def add_special_pages(shared: SharedMemory, first: int) -> None:
    """Give a fresh guest of `first` pages its special pages, and the parameters that name them."""
    domain = shared.domain
    special = range(first, first + len(SPECIAL_PAGES))
    shared.p2m[special.start : special.stop] = layout.P2M.POPULATED
    for param, pfn in zip(SPECIAL_PAGES, special, strict=True):
        domain.hvm_params[param] = pfn
    domain.hvm_params[HvmParam.STORE_EVTCHN] = 1
    domain.hvm_params[HvmParam.CONSOLE_EVTCHN] = 2
    domain.nr_pages = first + len(special)
    domain.maximum_gpfn = special[-1]
