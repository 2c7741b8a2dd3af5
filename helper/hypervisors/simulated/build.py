"""What a domain is made of: its configuration's limits, its defaults, its special pages."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from helper.hypervisors.simulated import layout
from helper.hypervisors.simulated.layout import DomainPage, HvmParam
from helper.hypervisors.simulated.registers import Registers
from helper.hypervisors.simulated.shared import SharedMemory
from helper.hypervisors.simulated.workload import DEFAULT_RATES, NAMES

MAXMEM_CONSTANT: Final = 1024
"""KiB that a domain may have beyond `max_memkb`, for its special pages
(LIBXL_MAXMEM_CONSTANT; libxl adds the video memory, too)."""

MAX_MEMKB: Final = 1 << 30
"""1 TiB."""

TYPES: Final = ("pvh", "hvm")

SPECIAL_PAGES: Final = (
    HvmParam.STORE_PFN,
    HvmParam.CONSOLE_PFN,
    HvmParam.IOREQ_PFN,
    HvmParam.BUFIOREQ_PFN,
)
"""HVM parameters that name a page. A fresh guest has these pages right behind its memory."""

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


def check_config(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a configuration that no domain of this host can have. It may come from
    a peer or a file, so that whatever is read of it later is checked here."""
    c_info, b_info = _part(config, "c_info"), _part(config, "b_info")
    kind = c_info.get("type")
    if not isinstance(kind, str) or kind not in TYPES:
        known = " and ".join(TYPES)
        raise ValueError(f"c_info.type is {_seen(kind)}: a simulated host has only {known} guests")
    _check_number("max_memkb", b_info.get("max_memkb"), 4)
    # libxl has -1 for a size that is still to be chosen.
    _check_number("video_memkb", b_info.get("video_memkb", 0), -1)
    if "simulated" not in config:
        return  # a real guest's
    workload = _part(config, "simulated").get("workload")
    if not isinstance(workload, str) or workload not in NAMES:
        raise ValueError(f"workload {_seen(workload)} is none of {', '.join(NAMES)}")


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    if not isinstance(part, Mapping):
        raise ValueError(f"not a domain configuration: {name} is {_seen(part)}, not an object")
    return part


def _check_number(name: str, value: object, least: int) -> None:
    if type(value) is not int or not least <= value <= MAX_MEMKB:
        raise ValueError(
            f"b_info.{name} is {_seen(value)}, not a number from {least} to {MAX_MEMKB}"
        )


def _seen(value: object) -> str:
    """A value as an error names it: on one line, and not a long one."""
    if value is None:
        return "missing"
    return f"{value!r:.40}" if isinstance(value, str | int | float) else type(value).__name__


def capacity_for(config: Mapping[str, Any]) -> int:
    """Pfns that the domain has room for."""
    pages: int = config["b_info"]["max_memkb"] // 4
    capacity = layout.MIN_CAPACITY
    while capacity < pages + MAXMEM_CONSTANT:
        capacity *= 2
    return capacity


def build_domain(
    shared: SharedMemory, domid: int, config: Mapping[str, Any], capacity: int
) -> None:
    """A domain page as xc_domain_create leaves it: paused, no pages, no registers."""
    domain: DomainPage = shared.domain
    build_info = config["b_info"]
    domain.domid = domid
    domain.hvm = config["c_info"]["type"] == "hvm"
    domain.capacity = capacity
    video_memkb = max(0, build_info.get("video_memkb", 0))
    domain.max_memkb = build_info["max_memkb"] + video_memkb + MAXMEM_CONSTANT
    domain.paused = 1
    domain.shutdown = layout.RUNS
    domain.tsc_khz = 2_400_000
    store_policy(
        shared,
        b"".join(struct.pack("<6I", *leaf) for leaf in _CPUID),
        b"".join(struct.pack("<IIQ", *entry) for entry in _MSRS),
    )
    domain.hvm_params[HvmParam.PAE_ENABLED] = 1
    domain.hvm_params[HvmParam.TIMER_MODE] = 1
    domain.magic = layout.MAGIC


def store_policy(shared: SharedMemory, cpuid: bytes, msr: bytes) -> None:
    """Keep the CPUID leaves and MSR entries of a domain."""
    shared.write_area(layout.CPUID_OFFSET, cpuid)
    shared.domain.cpuid_length = len(cpuid)
    shared.write_area(layout.MSR_OFFSET, msr)
    shared.domain.msr_length = len(msr)


def fresh_registers(request: Mapping[str, Any]) -> Registers:
    """Those of a guest that starts its life; `request` is what "build" asks for."""
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
        sweep=0,
        token=secrets.token_bytes(16),
    )


def add_special_pages(shared: SharedMemory, first: int) -> None:
    """Give a fresh guest of `first` pages its special ones, and the parameters that name them."""
    domain = shared.domain
    special = np.arange(first, first + len(SPECIAL_PAGES))
    shared.p2m[special] = layout.P2M.POPULATED
    for param, pfn in zip(SPECIAL_PAGES, special.tolist(), strict=True):
        domain.hvm_params[param] = pfn
    domain.hvm_params[HvmParam.STORE_EVTCHN] = 1
    domain.hvm_params[HvmParam.CONSOLE_EVTCHN] = 2
    domain.nr_pages = first + len(special)
    domain.maximum_gpfn = int(special[-1])
