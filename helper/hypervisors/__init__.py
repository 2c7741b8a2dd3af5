"""The hypervisors that the engine and the toolstack work on, by URI."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from helper.hypervisors.interface import Domain, Host

SIMULATED: Final = "sim:"
"""Followed by the directory of a simulated host."""

XEN: Final = "xen"
"""The Xen that this program runs on, in its control domain."""


def open_host(uri: str) -> Host:
    """The host that `uri` names: `xen`, or `sim:DIRECTORY`.

    Raises OSError: ENOTSUP for a hypervisor that there is not, NotADirectoryError or
    FileNotFoundError for a directory that is no host; as `helper.hypervisors.xen.libraries` does
    where this is no Xen or not one that is supported.
    """
    if uri == XEN:
        from helper.hypervisors.xen.host import XenHost

        return XenHost()
    if uri.startswith(SIMULATED):
        from helper.hypervisors.simulated.host import SimulatedHost

        return SimulatedHost(uri.removeprefix(SIMULATED))
    raise _unknown(uri)


def open_domain(uri: str, domid: int) -> Domain:
    """Domain `domid` of the host that `uri` names, for our own engine; raises ProcessLookupError
    besides, and ENOTSUP for `xen`: the work on a real domain's memory is libxenguest's."""
    if uri == XEN:
        raise OSError(
            errno.ENOTSUP, "our own engine does not work on Xen; use the engine libxenguest"
        )
    if uri.startswith(SIMULATED):
        from helper.hypervisors.simulated.host import SimulatedHost

        return SimulatedHost(uri.removeprefix(SIMULATED)).domain(domid)
    raise _unknown(uri)


def _unknown(uri: str) -> OSError:
    return OSError(
        errno.ENOTSUP, f"hypervisor {uri!r} is not supported; use {XEN} or {SIMULATED}DIRECTORY"
    )
