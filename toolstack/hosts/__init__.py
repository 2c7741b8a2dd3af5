"""The hosts that the toolstack works on, by URI: this machine's Xen, or a simulated one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xen_save_helper.helper.hypervisors import SIMULATED, XEN, unknown

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import Host


def open_host(uri: str) -> Host:
    """Open the host that `uri` names: `xen`, or `sim:DIRECTORY`.

    Raises OSError: ENOTSUP for an unknown hypervisor, NotADirectoryError or FileNotFoundError if
    the directory is not a host, and as `helper.hypervisors.xen.libraries` does if this is not a
    Xen host, or not a supported one.
    """
    if uri == XEN:
        from xen_save_helper.toolstack.hosts.xen.host import XenHost

        return XenHost()
    if uri.startswith(SIMULATED):
        from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

        return SimulatedHost(uri.removeprefix(SIMULATED))
    raise unknown(uri)
