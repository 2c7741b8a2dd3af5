"""libxenctrl: the operations on domains that a helper and a toolstack need, one method each.

What differs between the releases is in `helper.hypervisors.xen.xenctrl_abi`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from functools import cache

from xen_save_helper.helper.hypervisors.xen.libraries import (
    abi_version,
    call_error,
    load,
    versioned,
)
from xen_save_helper.helper.hypervisors.xen.toollog import Logger
from xen_save_helper.helper.hypervisors.xen.xenctrl_abi import XENCTRL_ABIS, XenctrlAbi
from xen_save_helper.ipc_schema.hints import Final, Self
from xen_save_helper.ipc_schema.named_tuple import NamedTuple

_DOMINF_DYING: Final = 1 << 0
_DOMINF_HVM_GUEST: Final = 1 << 1
_DOMINF_SHUTDOWN: Final = 1 << 2
_DOMINF_PAUSED: Final = 1 << 3
_DOMINF_SHUTDOWNSHIFT: Final = 16
_DOMINF_SHUTDOWNMASK: Final = 255

_SHADOW_OP_OFF: Final = 0
_SHADOW_OP_ENABLE_LOGDIRTY: Final = 2

_LIST_AT_ONCE: Final = 256

_PRIVCMD: Final = "/dev/xen/privcmd"


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
    max_vcpu_id: int
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


@cache
def _abi() -> XenctrlAbi:
    return XENCTRL_ABIS[abi_version()]


@cache
def _library() -> ctypes.CDLL:
    return load(versioned("libxenctrl"), _abi().prototypes)


@cache
def _resume_library() -> ctypes.CDLL:
    guest = _abi().guest_prototypes
    return load(versioned("libxenguest"), guest) if guest else _library()


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
        """What is known of the domain. Raises ESRCH if there is none."""
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
        if _resume_library().xc_domain_resume(self.handle, domid, int(fast)):
            raise self._error("xc_domain_resume", domid)

    def logdirty_enable(self, domid: int) -> None:
        """XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY. Raises EINVAL if it is on already."""
        self._shadow_control(domid, _SHADOW_OP_ENABLE_LOGDIRTY)

    def logdirty_off(self, domid: int) -> None:
        """XEN_DOMCTL_SHADOW_OP_OFF. No error if log-dirty mode is off already."""
        self._shadow_control(domid, _SHADOW_OP_OFF)

    def _shadow_control(self, domid: int, operation: int) -> None:
        # The result is the size of a pool, 0 or more, on success.
        arguments = _abi().shadow_arguments
        if self._library.xc_shadow_control(self.handle, domid, operation, *arguments) < 0:
            raise self._error("xc_shadow_control", domid)

    def hvm_param_get(self, domid: int, param: int) -> int:
        """HVM_PARAM_* number `param`."""
        value = ctypes.c_uint64()
        self._check("xc_hvm_param_get", domid, param, ctypes.byref(value))
        return value.value

    def hvm_param_set(self, domid: int, param: int, value: int) -> None:
        self._check("xc_hvm_param_set", domid, param, value)

    def _getinfolist(self, first: int, count: int) -> list[XenDomainInfo]:
        infos = (_abi().domain_info * count)()
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
                max_vcpu_id=info.max_vcpu_id,
                handle=bytes(info.handle),
            )
            for info in infos[:found]
        ]

    def _check(self, function: str, domid: int, *arguments: object) -> None:
        if getattr(self._library, function)(self.handle, domid, *arguments):
            raise self._error(function, domid)

    @staticmethod
    def _error(function: str, domid: int) -> OSError:
        return call_error(f"{function}, domain {domid}")


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
