"""interface.ControlledDomain of a real domain."""

from __future__ import annotations

import errno

from xen_save_helper.helper.hypervisors.interface import DomainInfo, ShutdownReason
from xen_save_helper.helper.hypervisors.xen.toollog import Logger
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl
from xen_save_helper.ipc_schema.hints import Final

PAGE_KIB: Final = 4


class XenControlledDomain:
    """One domain, with a hypervisor interface of its own, for one thread at a time.

    Raises ProcessLookupError if there is no such domain.
    """

    def __init__(self, domid: int, logger: Logger | None = None) -> None:
        self.domid = domid
        self._xenctrl = Xenctrl(logger)
        try:
            self.getinfo()
        except BaseException:
            self._xenctrl.close()
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
            paged_pages=info.paged_pages,
            vcpus=info.max_vcpu_id + 1,
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
