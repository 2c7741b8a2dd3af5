"""What libxl knows about a domain: its type, its state, its directory in xenstore."""

from __future__ import annotations

from typing import Final

from xen_save_helper.helper.hypervisors.interface import ShutdownReason
from xen_save_helper.helper.hypervisors.xen.xenctrl import XenDomainInfo
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.toolstack.hosts.interface import GuestState

PV: Final = "pv"
PVH: Final = "pvh"
HVM: Final = "hvm"


def home(domid: int) -> str:
    """The domain's directory in xenstore."""
    return f"/local/domain/{domid}"


def type_of(xenstore: Xenstore, info: XenDomainInfo) -> str:
    """libxl__domain_type: `pv`, `pvh` or `hvm`. For a domain that libxl did not make it is the
    hypervisor's, to which PVH is HVM."""
    return xenstore.text(f"/libxl/{info.domid}/type") or (HVM if info.hvm else PV)


def state_of(info: XenDomainInfo) -> GuestState:
    """The state that `list` shows. A domain that is both suspended and paused is suspended."""
    match info.shutdown_reason:
        case None:
            return GuestState.PAUSED if info.paused else GuestState.RUNNING
        case ShutdownReason.SUSPEND:
            return GuestState.SUSPENDED
        case ShutdownReason.POWEROFF | ShutdownReason.REBOOT | ShutdownReason.SOFT_RESET:
            return GuestState.SHUT_DOWN
        case _:
            return GuestState.CRASHED
