"""Which Xen runs here, and its libraries, by version.

libxenctrl and libxenguest have no stable ABI: each release has its own soname, and a helper must
use the ones of the running hypervisor (the hypervisor refuses another's). A release is supported
once its headers were compared with the tables of `helper.hypervisors.xen.xenctrl_abi` and
`helper.libxenguest.abi`.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping, Sequence
from functools import cache

from xen_save_helper.ipc_schema.hints import Any, Final

SUPPORTED: Final = ("4.14", "4.15", "4.16", "4.17", "4.18", "4.19", "4.20", "4.21", "4.22")
"""The releases whose ABI the tables hold."""

Prototypes = Mapping[str, tuple[Any, Sequence[Any]]]
"""By name of the function: its result's type and its parameters' types, as ctypes has them."""

_SYS_HYPERVISOR: Final = "/sys/hypervisor"
_MACHINE: Final = "x86_64"

XENVER_VERSION: Final = 0
VERSION_CALL: Final[Prototypes] = {
    "xc_version": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)),
}
"""It takes XENVER_VERSION, and is the same in every release."""
_VERSION: Final[Prototypes] = {
    **VERSION_CALL,
    "xc_interface_open": (ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint)),
    "xc_interface_close": (ctypes.c_int, (ctypes.c_void_p,)),
}


@cache
def abi_version() -> str:
    """The release whose libraries to use, one of `SUPPORTED`: that of the running hypervisor.
    If the kernel does not tell it: that of the only libraries that are installed, or, of several,
    the one that the hypervisor names.

    Raises OSError: ENODEV if there is no Xen, ENOTSUP for a release or a machine that is not
    supported.
    """
    machine = os.uname().machine
    if machine != _MACHINE:
        raise OSError(errno.ENOTSUP, f"a Xen host on {machine} is not supported, only {_MACHINE}")
    running = running_version()
    if running is not None:
        return supported(running)
    installed = [version for version in SUPPORTED if _is_installed(_guest_library(version))]
    if not installed:
        raise OSError(
            errno.ENODEV,
            f"no Xen here: {_SYS_HYPERVISOR}/version is missing, and libxenguest of no release "
            f"from {SUPPORTED[0]} to {SUPPORTED[-1]} can be loaded; this has to run in the control "
            "domain (dom0) of a Xen host",
        )
    if len(installed) > 1:
        return supported(_asked_version(installed))
    return installed[0]


def _asked_version(installed: Sequence[str]) -> str:
    """What the hypervisor itself says, through whichever libxenctrl: XENVER_version is not
    versioned as the other hypercalls are."""
    for version in reversed(installed):
        try:
            library = load(f"libxenctrl.so.{version}", _VERSION)
        except OSError:
            continue
        xch = library.xc_interface_open(None, None, 0)
        if not xch:
            break
        found: int = library.xc_version(xch, XENVER_VERSION, None)
        library.xc_interface_close(xch)
        if found > 0:
            return f"{found >> 16}.{found & 0xFFFF}"
        break
    raise OSError(
        errno.ENODEV,
        f"which Xen runs here? {_SYS_HYPERVISOR}/version is missing, the libraries of "
        f"{', '.join(installed)} are installed, and the hypervisor does not answer; remove the "
        "libraries that do not belong to it",
    )


def running_version(sys_hypervisor: str = _SYS_HYPERVISOR) -> str | None:
    """The release of the hypervisor that this kernel runs on, as `4.17`; None if the kernel
    knows of no Xen."""
    try:
        if _line(f"{sys_hypervisor}/type") != "xen":
            return None
        version = f"{sys_hypervisor}/version"
        return f"{_line(f'{version}/major')}.{_line(f'{version}/minor')}"
    except FileNotFoundError:
        return None


def supported(version: str) -> str:
    """`version`, if it is supported. Raises OSError(ENOTSUP) that says what to do: a save with the
    functions of another release could end in the middle, or harm the guest."""
    if version not in SUPPORTED:
        raise OSError(
            errno.ENOTSUP,
            f"Xen {version} runs here, and this xen-save-helper knows the libraries of "
            f"{SUPPORTED[0]} to {SUPPORTED[-1]} alone: install one that knows it; until then "
            "libxl's own helper does its work (unset LIBXL_SAVE_HELPER)",
        )
    return version


def load(soname: str, prototypes: Prototypes) -> ctypes.CDLL:
    """The shared library with the functions in `prototypes` declared. Calls leave errno in
    `ctypes.get_errno`. Raises OSError: ENOENT if it cannot be loaded, ENOSYS if it lacks one
    of the functions."""
    try:
        library = ctypes.CDLL(soname, use_errno=True)
    except OSError as bad:
        raise OSError(errno.ENOENT, f"{soname} cannot be loaded: {bad}") from None
    for name, (restype, argtypes) in prototypes.items():
        try:
            function = getattr(library, name)
        except AttributeError:
            raise OSError(errno.ENOSYS, f"{soname} has no function {name}") from None
        function.restype = restype
        function.argtypes = argtypes
    return library


def call_error(what: str, errnoval: int | None = None) -> OSError:
    """The error of a call that failed with `errnoval`, by default the errno that it has left; EIO
    if there is none."""
    number = (ctypes.get_errno() if errnoval is None else errnoval) or errno.EIO
    return OSError(number, f"{what}: {os.strerror(number)}")


def versioned(name: str) -> str:
    """The soname of a library that has one for each release: libxenctrl, libxenguest."""
    return f"{name}.so.{abi_version()}"


def _guest_library(version: str) -> str:
    return f"libxenguest.so.{version}"


def _is_installed(soname: str) -> bool:
    try:
        ctypes.CDLL(soname)
    except OSError:
        return False
    return True


def _line(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()
