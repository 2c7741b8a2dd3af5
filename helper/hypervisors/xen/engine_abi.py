"""libxenctrl's and libxenguest's ABI by release: the functions that our own engine calls.

Compared with each release's xenctrl.h, xc_private.h, xenguest.h and xc_dom.h. What differs: 4.16
split `xc_logdirty_control` off `xc_shadow_control`; 4.21 added `xc_dom_console_init`, which a
restore uses in place of clearing the console's page. CPU policies: `xen.cpu_policy`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from xen_save_helper.helper.hypervisors.xen.libraries import SUPPORTED, VERSION_CALL, Prototypes
from xen_save_helper.helper.hypervisors.xen.xenctrl_abi import DOMID, INTERFACE
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

ARRAY: Final = ctypes.c_void_p
"""A pointer to items, as a number."""

_U32: Final = ctypes.POINTER(ctypes.c_uint32)
_U64: Final = ctypes.POINTER(ctypes.c_uint64)


class HypercallBuffer(ctypes.Structure):
    """`xc_hypercall_buffer_t`: memory that the hypervisor can reach."""

    _fields_ = [
        ("hbuf", ctypes.c_void_p),
        ("param_shadow", ctypes.c_void_p),
        ("dir", ctypes.c_int),
        ("ubuf", ctypes.c_void_p),
        ("sz", ctypes.c_size_t),
    ]


class ShadowOpStats(ctypes.Structure):
    """`xc_shadow_op_stats_t`."""

    _fields_ = [("fault_count", ctypes.c_uint32), ("dirty_count", ctypes.c_uint32)]


class EngineAbi(NamedTuple):
    """One release's functions of libxenctrl and libxenguest.

    `splits_logdirty` and `console_init` say whether there are `xc_logdirty_control` and
    `xc_dom_console_init`.
    """

    control: Prototypes
    guest: Prototypes
    splits_logdirty: bool
    console_init: bool


_BUFFER: Final = ctypes.POINTER(HypercallBuffer)
_STATS: Final = ctypes.POINTER(ShadowOpStats)

_CONTROL: Final[Prototypes] = {
    **VERSION_CALL,
    "xc__hypercall_buffer_alloc_pages": (ctypes.c_void_p, (INTERFACE, _BUFFER, ctypes.c_int)),
    "xc__hypercall_buffer_free_pages": (None, (INTERFACE, _BUFFER, ctypes.c_int)),
    "xc_domain_maximum_gpfn": (ctypes.c_int, (INTERFACE, DOMID, ctypes.POINTER(ctypes.c_ulong))),
    "xc_get_pfn_type_batch": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_uint, ARRAY)),
    # xch, domid, nr_extents, extent_order, mem_flags, extent_start
    "xc_domain_populate_physmap_exact": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_ulong, ctypes.c_uint, ctypes.c_uint, ARRAY),
    ),
    # xch, domid, nr_extents, extent_order, extent_start
    "xc_domain_decrease_reservation_exact": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_ulong, ctypes.c_uint, ARRAY),
    ),
    "xc_domain_claim_pages": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_ulong)),
    "xc_mem_paging_enable": (ctypes.c_int, (INTERFACE, DOMID, ctypes.POINTER(ctypes.c_uint32))),
    "xc_mem_paging_disable": (ctypes.c_int, (INTERFACE, DOMID)),
    "xc_domain_pause": (ctypes.c_int, (INTERFACE, DOMID)),
    "xc_domain_unpause": (ctypes.c_int, (INTERFACE, DOMID)),
    # xch, domid, first_pfn, nr
    "xc_hvm_modified_memory": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_uint64, ctypes.c_uint32),
    ),
    "xc_clear_domain_pages": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_ulong, ctypes.c_int),
    ),
    "xc_domain_hvm_getcontext": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_char_p, ctypes.c_uint32),
    ),
    "xc_domain_hvm_setcontext": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_char_p, ctypes.c_uint32),
    ),
    # xch, domid, tsc_mode, elapsed_nsec, gtsc_khz, incarnation
    "xc_domain_get_tsc_info": (ctypes.c_int, (INTERFACE, DOMID, _U32, _U64, _U32, _U32)),
    "xc_domain_set_tsc_info": (
        ctypes.c_int,
        (INTERFACE, DOMID, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint32),
    ),
}
_GUEST: Final[Prototypes] = {
    # xch, domid, is_hvm, console_gfn, xenstore_gfn, console_domid, xenstore_domid
    "xc_dom_gnttab_seed": (
        ctypes.c_int,
        (
            INTERFACE,
            DOMID,
            ctypes.c_bool,
            ctypes.c_ulong,
            ctypes.c_ulong,
            ctypes.c_uint32,
            ctypes.c_uint32,
        ),
    ),
}

_4_14: Final = EngineAbi(
    control={
        **_CONTROL,
        # xch, domid, sop, dirty_bitmap, pages, mb, mode, stats
        "xc_shadow_control": (
            ctypes.c_int,
            (
                INTERFACE,
                DOMID,
                ctypes.c_uint,
                _BUFFER,
                ctypes.c_ulong,
                ctypes.c_void_p,
                ctypes.c_uint32,
                _STATS,
            ),
        ),
    },
    guest=_GUEST,
    splits_logdirty=False,
    console_init=False,
)
_4_16: Final = EngineAbi(
    control={
        **_CONTROL,
        # xch, domid, sop, dirty_bitmap, pages, mode, stats
        "xc_logdirty_control": (
            ctypes.c_longlong,
            (
                INTERFACE,
                DOMID,
                ctypes.c_uint,
                _BUFFER,
                ctypes.c_ulong,
                ctypes.c_uint,
                _STATS,
            ),
        ),
    },
    guest=_GUEST,
    splits_logdirty=True,
    console_init=False,
)
_4_21: Final = _4_16._replace(
    guest={
        **_GUEST,
        "xc_dom_console_init": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_ulong)),
    },
    console_init=True,
)

ENGINE_ABIS: Final[Mapping[str, EngineAbi]] = {
    version: _4_14 if version in ("4.14", "4.15") else _4_21 if version >= "4.21" else _4_16
    for version in SUPPORTED
}
"""By release, one for each in `libraries.SUPPORTED`."""
