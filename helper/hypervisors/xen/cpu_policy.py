"""CPU policies: what this host's Xen can offer a guest, and what a domain has been offered.

xenctrl.h declares them up to 4.15, and xenguest.h (`xc_cpu_policy_*`) since 4.16; libxenguest has
the functions in both.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from xen_save_helper.helper.hypervisors.xen.libraries import (
    Prototypes,
    abi_version,
    call_error,
    load,
    versioned,
)
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.helper.hypervisors.xen.xenctrl_abi import DOMID, INTERFACE
from xen_save_helper.ipc_schema.hints import Any, Final

_PV_MAX: Final = 2
_HVM_MAX: Final = 3
"""XEN_SYSCTL_cpu_policy_*: all that a guest of that kind may be offered here."""

_COUNT: Final = ctypes.POINTER(ctypes.c_uint32)


class _Leaf(ctypes.Structure):
    """`xen_cpuid_leaf_t`."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("leaf", "subleaf", "a", "b", "c", "d")]


class _Msr(ctypes.Structure):
    """`xen_msr_entry_t`."""

    _fields_ = [("idx", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("val", ctypes.c_uint64)]


_ENTRIES: Final = (ctypes.POINTER(_Leaf), ctypes.POINTER(_Msr))
_SIZE: Final = (ctypes.c_int, (INTERFACE, _COUNT, _COUNT))
_SET: Final[Prototypes] = {
    # xch, domid, nr_leaves, leaves, nr_msrs, msrs, err_leaf, err_subleaf, err_msr
    "xc_set_domain_cpu_policy": (
        ctypes.c_int,
        (
            *(INTERFACE, DOMID, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint32),
            *(ctypes.c_char_p, _COUNT, _COUNT, _COUNT),
        ),
    ),
}
_NOTHING: Final = 2**32 - 1
"""What Xen leaves in an error's place for one that is not about a leaf or an MSR."""

_UNTIL_4_15: Final[Prototypes] = {
    **_SET,
    "xc_get_cpu_policy_size": _SIZE,
    # xch, index, nr_leaves, leaves, nr_msrs, msrs
    "xc_get_system_cpu_policy": (
        ctypes.c_int,
        (INTERFACE, ctypes.c_uint32, _COUNT, _ENTRIES[0], _COUNT, _ENTRIES[1]),
    ),
    # xch, domid, nr_leaves, leaves, nr_msrs, msrs
    "xc_get_domain_cpu_policy": (
        ctypes.c_int,
        (INTERFACE, DOMID, _COUNT, _ENTRIES[0], _COUNT, _ENTRIES[1]),
    ),
}
_SINCE_4_16: Final[Prototypes] = {
    **_SET,
    "xc_cpu_policy_get_size": _SIZE,
    "xc_cpu_policy_init": (ctypes.c_void_p, ()),
    "xc_cpu_policy_get_system": (ctypes.c_int, (INTERFACE, ctypes.c_uint, ctypes.c_void_p)),
    "xc_cpu_policy_get_domain": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_void_p)),
    # xch, policy, leaves, nr_leaves, msrs, nr_msrs
    "xc_cpu_policy_serialise": (
        ctypes.c_int,
        (INTERFACE, ctypes.c_void_p, _ENTRIES[0], _COUNT, _ENTRIES[1], _COUNT),
    ),
    "xc_cpu_policy_destroy": (None, (ctypes.c_void_p,)),
}


@cache
def _library() -> tuple[ctypes.CDLL, bool]:
    """libxenguest, and whether it has `xc_cpu_policy_*`."""
    newer = abi_version() not in ("4.14", "4.15")
    return load(versioned("libxenguest"), _SINCE_4_16 if newer else _UNTIL_4_15), newer


def system_cpu_policy(xch: Xenctrl, *, hvm: bool) -> bytes:
    """The CPUID leaves of all that a guest may be offered here, as X86_CPUID_POLICY carries them.
    `hvm` is true for a PVH guest, too. Raises OSError."""
    return _read(xch.handle, "system", _HVM_MAX if hvm else _PV_MAX)[0]


def domain_cpu_policy(xch: Xenctrl, domid: int) -> tuple[bytes, bytes]:
    """The CPUID leaves and MSR entries that a domain has been offered, as X86_CPUID_POLICY and
    X86_MSR_POLICY carry them (write_x86_cpu_policy_records). Raises OSError."""
    return _read(xch.handle, "domain", domid)


def set_domain_cpu_policy(xch: Xenctrl, domid: int, cpuid: bytes, msr: bytes) -> None:
    """Offer a domain that has not run yet what its stream says; either may be empty.

    Raises OSError that names the leaf or MSR if Xen refuses one.
    """
    library, _objects = _library()
    bad = [ctypes.c_uint32(_NOTHING) for _ in range(3)]
    result = library.xc_set_domain_cpu_policy(
        xch.handle,
        domid,
        len(cpuid) // ctypes.sizeof(_Leaf),
        cpuid,
        len(msr) // ctypes.sizeof(_Msr),
        msr,
        *map(ctypes.byref, bad),
    )
    if not result:
        return
    leaf, subleaf, index = (place.value for place in bad)
    about = ""
    if leaf != _NOTHING:
        about = f", leaf {leaf:#x}" + (f", subleaf {subleaf:#x}" if subleaf != _NOTHING else "")
    elif index != _NOTHING:
        about = f", MSR {index:#x}"
    _check(f"xc_set_domain_cpu_policy, domain {domid}{about}", result)


def _read(handle: int | None, kind: str, which: int) -> tuple[bytes, bytes]:
    """The policy of the `system` with an index, or of the `domain` with a domid."""
    library, objects = _library()
    size = "xc_cpu_policy_get_size" if objects else "xc_get_cpu_policy_size"
    nr_leaves, nr_msrs = ctypes.c_uint32(), ctypes.c_uint32()
    counts = ctypes.byref(nr_leaves), ctypes.byref(nr_msrs)
    _check(size, getattr(library, size)(handle, *counts))
    leaves, msrs = (_Leaf * nr_leaves.value)(), (_Msr * nr_msrs.value)()
    if objects:
        _serialise(library, handle, kind, which, leaves, counts[0], msrs, counts[1])
    else:
        function = f"xc_get_{kind}_cpu_policy"
        arguments = (counts[0], leaves, counts[1], msrs)
        _check(function, getattr(library, function)(handle, which, *arguments))
    return (
        bytes(leaves)[: nr_leaves.value * ctypes.sizeof(_Leaf)],
        bytes(msrs)[: nr_msrs.value * ctypes.sizeof(_Msr)],
    )


def _serialise(
    library: ctypes.CDLL, handle: int | None, kind: str, which: int, *entries: Any
) -> None:
    policy = library.xc_cpu_policy_init()
    if not policy:
        raise OSError(errno.ENOMEM, f"xc_cpu_policy_init: {os.strerror(errno.ENOMEM)}")
    try:
        function = f"xc_cpu_policy_get_{kind}"
        _check(function, getattr(library, function)(handle, which, policy))
        function = "xc_cpu_policy_serialise"
        _check(function, library.xc_cpu_policy_serialise(handle, policy, *entries))
    finally:
        library.xc_cpu_policy_destroy(policy)


def _check(function: str, result: int) -> None:
    if result:
        raise call_error(function)
