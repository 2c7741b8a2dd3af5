"""libxenctrl's ABI by release: the structs and functions of `helper.hypervisors.xen.xenctrl`.

Each row was compared with that release's xenctrl.h, xenguest.h and public/domctl.h. What differs
between them: 4.16 gave `xc_shadow_control` 5 parameters in place of 8, `xc_domaininfo_t` 8 octets
more, and moved `xc_domain_resume` to libxenguest.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping

from xen_save_helper.helper.hypervisors.xen.libraries import Prototypes
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

INTERFACE: Final = ctypes.c_void_p
DOMID: Final = ctypes.c_uint32

_COMMON_FIELDS: Final[list[tuple[str, Any]]] = [
    ("domain", ctypes.c_uint16),
    ("pad1", ctypes.c_uint16),
    ("flags", ctypes.c_uint32),
    ("tot_pages", ctypes.c_uint64),
    ("max_pages", ctypes.c_uint64),
    ("outstanding_pages", ctypes.c_uint64),
    ("shr_pages", ctypes.c_uint64),
    ("paged_pages", ctypes.c_uint64),
    ("shared_info_frame", ctypes.c_uint64),
    ("cpu_time", ctypes.c_uint64),
    ("nr_online_vcpus", ctypes.c_uint32),
    ("max_vcpu_id", ctypes.c_uint32),
    ("ssidref", ctypes.c_uint32),
    ("handle", ctypes.c_uint8 * 16),
    ("cpupool", ctypes.c_uint32),
]
_ARCH_CONFIG: Final[list[tuple[str, Any]]] = [
    ("emulation_flags", ctypes.c_uint32),
    ("misc_flags", ctypes.c_uint32),
]
"""`struct xen_arch_domainconfig`; in 4.14 the second is padding."""


class DomainInfo4_14(ctypes.Structure):
    """`xc_domaininfo_t` of 4.14 and 4.15, of 104 octets."""

    _fields_ = [*_COMMON_FIELDS, *_ARCH_CONFIG]


class DomainInfo4_16(ctypes.Structure):
    """`xc_domaininfo_t` since 4.16, of 112 octets."""

    _fields_ = [
        *_COMMON_FIELDS,
        ("gpaddr_bits", ctypes.c_uint8),
        ("pad2", ctypes.c_uint8 * 7),
        *_ARCH_CONFIG,
    ]


class XenctrlAbi(NamedTuple):
    """One release's. `shadow_arguments` are those of `xc_shadow_control` after its operation, for
    an operation that has none."""

    domain_info: type[DomainInfo4_14] | type[DomainInfo4_16]
    prototypes: Prototypes
    guest_prototypes: Prototypes
    shadow_arguments: tuple[int | None, ...]


_RESUME: Final[Prototypes] = {
    "xc_domain_resume": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_int)),
}


def _prototypes(
    domain_info: type[ctypes.Structure], shadow_parameters: tuple[Any, ...]
) -> Prototypes:
    return {
        "xc_interface_open": (INTERFACE, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)),
        "xc_interface_close": (ctypes.c_int, (INTERFACE,)),
        "xc_domain_getinfolist": (
            ctypes.c_int,
            (INTERFACE, DOMID, ctypes.c_uint, ctypes.POINTER(domain_info)),
        ),
        "xc_domain_pause": (ctypes.c_int, (INTERFACE, DOMID)),
        "xc_domain_unpause": (ctypes.c_int, (INTERFACE, DOMID)),
        "xc_domain_destroy": (ctypes.c_int, (INTERFACE, DOMID)),
        "xc_domain_shutdown": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_int)),
        "xc_shadow_control": (
            ctypes.c_int,
            (INTERFACE, DOMID, ctypes.c_uint, *shadow_parameters),
        ),
        "xc_hvm_param_get": (
            ctypes.c_int,
            (INTERFACE, DOMID, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)),
        ),
        "xc_hvm_param_set": (ctypes.c_int, (INTERFACE, DOMID, ctypes.c_uint32, ctypes.c_uint64)),
    }


_4_14: Final = XenctrlAbi(
    domain_info=DomainInfo4_14,
    prototypes={
        **_prototypes(
            DomainInfo4_14,
            # dirty_bitmap, pages, mb, mode, stats
            (
                ctypes.c_void_p,
                ctypes.c_ulong,
                ctypes.POINTER(ctypes.c_ulong),
                ctypes.c_uint32,
                ctypes.c_void_p,
            ),
        ),
        **_RESUME,
    },
    guest_prototypes={},
    shadow_arguments=(None, 0, None, 0, None),
)
_4_16: Final = XenctrlAbi(
    domain_info=DomainInfo4_16,
    # mb, mode
    prototypes=_prototypes(DomainInfo4_16, (ctypes.POINTER(ctypes.c_uint), ctypes.c_uint)),
    guest_prototypes=_RESUME,
    shadow_arguments=(None, 0),
)

XENCTRL_ABIS: Final[Mapping[str, XenctrlAbi]] = {
    "4.14": _4_14,
    "4.15": _4_14,
    "4.16": _4_16,
    "4.17": _4_16,
    "4.18": _4_16,
    "4.19": _4_16,
    "4.20": _4_16,
    "4.21": _4_16,
    "4.22": _4_16,
}
"""By release, one for each in `libraries.SUPPORTED`."""
