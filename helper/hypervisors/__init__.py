"""The hypervisors that our own engine works on, by URI."""

from __future__ import annotations

import errno

from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.interface import Domain

SIMULATED: Final = "sim:"
"""Followed by the directory of a simulated host."""

XEN: Final = "xen"
"""The Xen that this program runs on, in its control domain."""


def open_domain(uri: str, domid: int) -> Domain:
    """Domain `domid` of the host that `uri` names, for our own engine.

    Raises OSError: ProcessLookupError if there is no such domain, NotADirectoryError or
    FileNotFoundError for a directory that is not a host, ENOTSUP for an unknown hypervisor, and for
    `xen` whatever its libraries say.
    """
    if uri == XEN:
        from xen_save_helper.helper.hypervisors.xen.domain import XenDomain

        return XenDomain(domid)
    if uri.startswith(SIMULATED):
        # On Xen no helper needs it.
        from pathlib import Path

        from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host

        return open_on_host(Path(uri.removeprefix(SIMULATED)), domid)
    raise unknown(uri)


def unknown(uri: str) -> OSError:
    """The error for a URI that names neither hypervisor."""
    return OSError(
        errno.ENOTSUP, f"hypervisor {uri!r} is not supported; use {XEN} or {SIMULATED}DIRECTORY"
    )
