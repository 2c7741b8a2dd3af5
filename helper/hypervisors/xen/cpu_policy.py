"""What this host's Xen can offer a guest: its system CPU policies (xenctrl.h up to 4.15,
xenguest.h's `xc_cpu_policy_*` since 4.16, which libxenguest has in both)."""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Any, Final

from xen_save_helper.helper.hypervisors.xen.libraries import (
    Prototypes,
    abi_version,
    load,
    versioned,
)
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.helper.hypervisors.xen.xenctrl_abi import INTERFACE

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

_UNTIL_4_15: Final[Prototypes] = {
    "xc_get_cpu_policy_size": _SIZE,
    # xch, index, nr_leaves, leaves, nr_msrs, msrs
    "xc_get_system_cpu_policy": (
        ctypes.c_int,
        (INTERFACE, ctypes.c_uint32, _COUNT, _ENTRIES[0], _COUNT, _ENTRIES[1]),
    ),
}
_SINCE_4_16: Final[Prototypes] = {
    "xc_cpu_policy_get_size": _SIZE,
    "xc_cpu_policy_init": (ctypes.c_void_p, ()),
    "xc_cpu_policy_get_system": (ctypes.c_int, (INTERFACE, ctypes.c_uint, ctypes.c_void_p)),
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
    library, newer = _library()
    size = "xc_cpu_policy_get_size" if newer else "xc_get_cpu_policy_size"
    nr_leaves, nr_msrs = ctypes.c_uint32(), ctypes.c_uint32()
    counts = ctypes.byref(nr_leaves), ctypes.byref(nr_msrs)
    _check(size, getattr(library, size)(xch.handle, *counts))
    leaves, msrs = (_Leaf * nr_leaves.value)(), (_Msr * nr_msrs.value)()
    read = _read if newer else _read_until_4_15
    read(library, xch.handle, _HVM_MAX if hvm else _PV_MAX, (leaves, counts[0]), (msrs, counts[1]))
    return bytes(leaves)[: nr_leaves.value * ctypes.sizeof(_Leaf)]


_Entries = tuple[Any, Any]
"""An array and a pointer to its length, which becomes the length of what is there."""


def _read(
    library: ctypes.CDLL, handle: int | None, index: int, leaves: _Entries, msrs: _Entries
) -> None:
    policy = library.xc_cpu_policy_init()
    if not policy:
        raise OSError(errno.ENOMEM, f"xc_cpu_policy_init: {os.strerror(errno.ENOMEM)}")
    try:
        function = "xc_cpu_policy_get_system"
        _check(function, library.xc_cpu_policy_get_system(handle, index, policy))
        function = "xc_cpu_policy_serialise"
        _check(function, library.xc_cpu_policy_serialise(handle, policy, *leaves, *msrs))
    finally:
        library.xc_cpu_policy_destroy(policy)


def _read_until_4_15(
    library: ctypes.CDLL, handle: int | None, index: int, leaves: _Entries, msrs: _Entries
) -> None:
    arguments = (leaves[1], leaves[0], msrs[1], msrs[0])
    _check("xc_get_system_cpu_policy", library.xc_get_system_cpu_policy(handle, index, *arguments))


def _check(function: str, result: int) -> None:
    if result:
        errnoval = ctypes.get_errno() or errno.EIO
        raise OSError(errnoval, f"{function}: {os.strerror(errnoval)}")
