"""interface.ControlledDomain of a real domain, and what libxl knows of it in xenstore."""

from __future__ import annotations

import errno
from typing import Final

from xen_save_helper.helper.hypervisors.interface import DomainInfo, ShutdownReason
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl, XenDomainInfo
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.toolstack.hosts.interface import GuestState

PAGE_KIB: Final = 4

PV: Final = "pv"
PVH: Final = "pvh"
HVM: Final = "hvm"


def home(domid: int) -> str:
    """The domain's directory in xenstore."""
    return f"/local/domain/{domid}"


def type_of(xenstore: Xenstore, info: XenDomainInfo) -> str:
    """libxl__domain_type: `pv`, `pvh` or `hvm`. For a domain that libxl has not made, what the
    hypervisor knows, to which PVH is HVM."""
    return xenstore.text(f"/libxl/{info.domid}/type") or (HVM if info.hvm else PV)


def state_of(info: XenDomainInfo) -> GuestState:
    """As `list` shows it. A suspended domain that is paused besides is suspended."""
    match info.shutdown_reason:
        case None:
            return GuestState.PAUSED if info.paused else GuestState.RUNNING
        case ShutdownReason.SUSPEND:
            return GuestState.SUSPENDED
        case ShutdownReason.POWEROFF | ShutdownReason.REBOOT | ShutdownReason.SOFT_RESET:
            return GuestState.SHUT_DOWN
        case _:
            return GuestState.CRASHED


class XenDomain:
    """One domain, with a hypervisor interface of its own, for one thread at a time.

    Raises ProcessLookupError where there is no such domain.
    """

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self._xenctrl = Xenctrl()
        try:
            self.getinfo()
        except BaseException:
            self.close()
            raise

    def getinfo(self) -> DomainInfo:
        info = self._xenctrl.domain_getinfo(self.domid)
        reason = info.shutdown_reason
        return DomainInfo(
            domid=info.domid,
            hvm=info.hvm,
            paused=info.paused,
            dying=info.dying,
            shutdown_reason=None if reason is None else ShutdownReason(reason),
            nr_pages=info.tot_pages,
            max_memkb=info.max_pages * PAGE_KIB,
        )

    def logdirty_off(self) -> None:
        try:
            self._xenctrl.logdirty_off(self.domid)
        except OSError as error:
            # A Xen without shadow paging has no log-dirty mode for a PV domain, and refuses this
            # too, having turned off what there was (shadow_domctl, paging_domctl).
            refusals = {errno.EINVAL, errno.EOPNOTSUPP}
            if error.errno not in refusals or self.getinfo().hvm:
                raise

    def close(self) -> None:
        self._xenctrl.close()
