"""libxenctrl: the operations on domains that a helper and a toolstack need, one method each.

The functions used here, and `xc_domaininfo_t`, are the same in every supported release (xenctrl.h,
public/domctl.h); `xc_domain_resume` is libxenguest's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache
from typing import Final, NamedTuple, Self

from helper.hypervisors.xen.libraries import Prototypes, load, versioned
from helper.hypervisors.xen.toollog import Logger

_INTERFACE = ctypes.c_void_p
_DOMID = ctypes.c_uint32

_DOMINF_DYING: Final = 1 << 0
_DOMINF_HVM_GUEST: Final = 1 << 1
_DOMINF_SHUTDOWN: Final = 1 << 2
_DOMINF_PAUSED: Final = 1 << 3
_DOMINF_SHUTDOWNSHIFT: Final = 16
_DOMINF_SHUTDOWNMASK: Final = 255

_SHADOW_OP_OFF: Final = 0

_LIST_AT_ONCE: Final = 256

_PRIVCMD: Final = "/dev/xen/privcmd"


class _DomainInfo(ctypes.Structure):
    """`xc_domaininfo_t`: struct xen_domctl_getdomaininfo of interface versions 0x15 to 0x17."""

    _fields_ = [
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
        ("gpaddr_bits", ctypes.c_uint8),
        ("pad2", ctypes.c_uint8 * 7),
        ("emulation_flags", ctypes.c_uint32),
        ("misc_flags", ctypes.c_uint32),
    ]


class XenDomainInfo(NamedTuple):
    """What `xc_domaininfo_t` says of a domain. `flags` are XEN_DOMINF_*, pages are of 4 KiB,
    `cpu_time` in nanoseconds, `handle` the UUID's 16 octets."""

    domid: int
    flags: int
    tot_pages: int
    max_pages: int
    paged_pages: int
    shared_info_frame: int
    cpu_time: int
    nr_online_vcpus: int
    handle: bytes

    @property
    def dying(self) -> bool:
        return bool(self.flags & _DOMINF_DYING)

    @property
    def hvm(self) -> bool:
        """XEN_DOMINF_hvm_guest: true for a PVH domain too."""
        return bool(self.flags & _DOMINF_HVM_GUEST)

    @property
    def paused(self) -> bool:
        """Paused by the toolstack; nothing to do with being suspended."""
        return bool(self.flags & _DOMINF_PAUSED)

    @property
    def shutdown_reason(self) -> int | None:
        """SHUTDOWN_* (2 is suspend), None for a domain that is not shut down."""
        if not self.flags & _DOMINF_SHUTDOWN:
            return None
        return self.flags >> _DOMINF_SHUTDOWNSHIFT & _DOMINF_SHUTDOWNMASK


_PROTOTYPES: Final[Prototypes] = {
    "xc_interface_open": (_INTERFACE, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)),
    "xc_interface_close": (ctypes.c_int, (_INTERFACE,)),
    "xc_domain_getinfolist": (
        ctypes.c_int,
        (_INTERFACE, _DOMID, ctypes.c_uint, ctypes.POINTER(_DomainInfo)),
    ),
    "xc_domain_pause": (ctypes.c_int, (_INTERFACE, _DOMID)),
    "xc_domain_unpause": (ctypes.c_int, (_INTERFACE, _DOMID)),
    "xc_domain_destroy": (ctypes.c_int, (_INTERFACE, _DOMID)),
    "xc_domain_shutdown": (ctypes.c_int, (_INTERFACE, _DOMID, ctypes.c_int)),
    "xc_shadow_control": (
        ctypes.c_int,
        (_INTERFACE, _DOMID, ctypes.c_uint, ctypes.POINTER(ctypes.c_uint), ctypes.c_uint),
    ),
    "xc_hvm_param_get": (
        ctypes.c_int,
        (_INTERFACE, _DOMID, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint64)),
    ),
    "xc_hvm_param_set": (ctypes.c_int, (_INTERFACE, _DOMID, ctypes.c_uint32, ctypes.c_uint64)),
}
_GUEST_PROTOTYPES: Final[Prototypes] = {
    "xc_domain_resume": (ctypes.c_int, (_INTERFACE, _DOMID, ctypes.c_int)),
}


@cache
def _library() -> ctypes.CDLL:
    return load(versioned("libxenctrl"), _PROTOTYPES)


@cache
def _guest_library() -> ctypes.CDLL:
    return load(versioned("libxenguest"), _GUEST_PROTOTYPES)


class Xenctrl:
    """An open hypervisor interface (`xc_interface *`), for one thread at a time.

    `logger` gets what the library says; without one it writes to stderr. Every method raises
    OSError with libxc's errno; opening raises that of `libraries.abi_version` and `load` besides.
    """

    def __init__(self, logger: Logger | None = None) -> None:
        self._library = _library()
        self._logger = logger
        pointer = logger.pointer if logger else None
        self.handle: int | None = self._library.xc_interface_open(pointer, pointer, 0)
        """The `xc_interface *`, for other libraries' functions; None once closed."""
        if not self.handle:
            errnoval = ctypes.get_errno() or errno.ENODEV
            raise OSError(
                errnoval, f"xc_interface_open: {os.strerror(errnoval)}: {_what_is_missing()}"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def close(self) -> None:
        """xc_interface_close; a second time does nothing."""
        if self.handle:
            self._library.xc_interface_close(self.handle)
            self.handle = None

    def domain_getinfo(self, domid: int) -> XenDomainInfo:
        """What is known of the domain. Raises ESRCH where there is none."""
        for info in self._getinfolist(domid, 1):
            if info.domid == domid:
                return info
        raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}")

    def domain_list(self) -> list[XenDomainInfo]:
        """All domains, by domid; those that are dying too."""
        found: list[XenDomainInfo] = []
        while True:
            first = found[-1].domid + 1 if found else 0
            part = self._getinfolist(first, _LIST_AT_ONCE)
            found += part
            if len(part) < _LIST_AT_ONCE:
                return found

    def domain_pause(self, domid: int) -> None:
        self._check("xc_domain_pause", domid)

    def domain_unpause(self, domid: int) -> None:
        self._check("xc_domain_unpause", domid)

    def domain_destroy(self, domid: int) -> None:
        """The hypervisor's part alone: devices and xenstore are the toolstack's."""
        self._check("xc_domain_destroy", domid)

    def domain_shutdown(self, domid: int, reason: int) -> None:
        """Shut it down with SHUTDOWN_* `reason`, the guest unasked."""
        self._check("xc_domain_shutdown", domid, reason)

    def domain_resume(self, domid: int, *, fast: bool) -> None:
        """Let a suspended domain run on. `fast`: its suspend hypercall returns 1 (cancelled);
        otherwise it finds itself restored, with its state put back."""
        if _guest_library().xc_domain_resume(self.handle, domid, int(fast)):
            raise self._error("xc_domain_resume", domid)

    def logdirty_off(self, domid: int) -> None:
        """XEN_DOMCTL_SHADOW_OP_OFF. No error where log-dirty mode is off already."""
        # The result is the size of a pool, 0 or more, on success.
        if self._library.xc_shadow_control(self.handle, domid, _SHADOW_OP_OFF, None, 0) < 0:
            raise self._error("xc_shadow_control", domid)

    def hvm_param_get(self, domid: int, param: int) -> int:
        """HVM_PARAM_* number `param`."""
        value = ctypes.c_uint64()
        self._check("xc_hvm_param_get", domid, param, ctypes.byref(value))
        return value.value

    def hvm_param_set(self, domid: int, param: int, value: int) -> None:
        self._check("xc_hvm_param_set", domid, param, value)

    def _getinfolist(self, first: int, count: int) -> list[XenDomainInfo]:
        infos = (_DomainInfo * count)()
        found = self._library.xc_domain_getinfolist(self.handle, first, count, infos)
        if found < 0:
            raise self._error("xc_domain_getinfolist", first)
        return [
            XenDomainInfo(
                domid=info.domain,
                flags=info.flags,
                tot_pages=info.tot_pages,
                max_pages=info.max_pages,
                paged_pages=info.paged_pages,
                shared_info_frame=info.shared_info_frame,
                cpu_time=info.cpu_time,
                nr_online_vcpus=info.nr_online_vcpus,
                handle=bytes(info.handle),
            )
            for info in infos[:found]
        ]

    def _check(self, function: str, domid: int, *arguments: object) -> None:
        if getattr(self._library, function)(self.handle, domid, *arguments):
            raise self._error(function, domid)

    @staticmethod
    def _error(function: str, domid: int) -> OSError:
        errnoval = ctypes.get_errno() or errno.EIO
        return OSError(errnoval, f"{function}, domain {domid}: {os.strerror(errnoval)}")


def _what_is_missing() -> str:
    """Why the interface cannot be opened, as far as a look at its device tells."""
    if not os.path.exists(_PRIVCMD):
        return (
            f"{_PRIVCMD} does not exist: this has to run in the control domain (dom0) of a Xen "
            "host, with the kernel module xen-privcmd"
        )
    if not os.access(_PRIVCMD, os.R_OK | os.W_OK):
        return f"no access to {_PRIVCMD}: this has to run as root"
    return f"{_PRIVCMD} is there; is this the control domain (dom0)?"
