"""interface.Host of a Xen host: what the toolstack does to real domains, in the control domain.

`xl` does what libxl keeps to itself (configurations, devices, names); we do what has to be quick or
must be waited for (states, suspension, log-dirty mode).
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from xen_save_helper.helper.hypervisors.xen import paging_calls, restored_model
from xen_save_helper.helper.hypervisors.xen.controlled_domain import (
    PAGE_KIB,
    XenControlledDomain,
)
from xen_save_helper.helper.hypervisors.xen.domain import XenDomain
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl, XenDomainInfo
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore
from xen_save_helper.helper.settings import control_directory
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.hosts.interface import (
    DomainSummary,
    GuestReport,
    GuestState,
    RestoredGfns,
    RestoreProgram,
    Rings,
)
from xen_save_helper.toolstack.hosts.xen import device_model, memory, xl
from xen_save_helper.toolstack.hosts.xen.build import DomainBuild
from xen_save_helper.toolstack.hosts.xen.domain import (
    HVM,
    home,
    state_of,
    type_of,
)
from xen_save_helper.toolstack.hosts.xen.suspend import XenSuspendRequest, withdraw_request

STATE_DIRECTORY: Final = Path("/run/xen-save-helper")
"""It does not outlive a boot, as its journals' domains do not: after the next one a domid names
another domain."""

CONTROL_DOMAIN: Final = 0

_LOCK_SECONDS: Final = 100.0
"""How long xl may take to make an empty domain, and to wait for another one that is being made."""


class XenHost:
    """This machine's Xen host. Each call opens its own connections and interfaces, so that any
    thread may make it.

    Raises OSError, from the constructor on, if this is not a Xen host, or not a supported one.
    """

    def __init__(self) -> None:
        self.state_dir = STATE_DIRECTORY
        self.control_dir = control_directory(os.environ)
        self._emulator_contexts: dict[int, bytes] = {}
        self._suspended_at: dict[int, float] = {}
        self._builds: dict[int, DomainBuild] = {}
        """Of domains that `xl` has not finished yet, by domid."""
        with Xenctrl():
            pass  # to find out at once what is missing

    # -- who is there ---------------------------------------------------------------------------

    def domains(self) -> list[DomainSummary]:
        """All domains but the control domain and those that are being destroyed."""
        with Xenctrl() as xenctrl, Xenstore() as xenstore:
            return [
                self._summary(xenstore, info)
                for info in xenctrl.domain_list()
                if info.domid != CONTROL_DOMAIN and not info.dying
            ]

    @staticmethod
    def _summary(xenstore: Xenstore, info: XenDomainInfo) -> DomainSummary:
        return DomainSummary(
            domid=info.domid,
            # A domain that is being made has no name yet.
            name=xenstore.text(f"{home(info.domid)}/name") or "",
            memory=info.tot_pages * PAGE_KIB * 1024,
            type=type_of(xenstore, info),
            workload=None,
            state=state_of(info),
            # The hypervisor shows it only by refusing to turn it on a second time.
            log_dirty=None,
            pid=None,
            uuid=str(UUID(bytes=info.handle)),
        )

    def summary(self, domid: int) -> DomainSummary:
        info = self._info(domid)
        with Xenstore() as xenstore:
            return self._summary(xenstore, info)

    def find(self, name: str) -> int:
        for row in self.domains():
            if row.name == name:
                return row.domid
        raise ProcessLookupError(errno.ESRCH, f"there is no domain {name!r} here")

    def domain(self, domid: int) -> XenControlledDomain:
        return XenControlledDomain(domid)

    def config(self, domid: int) -> dict[str, Any]:
        """Raises OSError (ENOTSUP) for a domain with virtual NUMA nodes, as libxl__domain_save
        does: a stream does not say which page is on which node."""
        self._info(domid)
        config = xl.domain_config(domid)
        if config.get("b_info", {}).get("vnuma_nodes"):
            raise OSError(
                errno.ENOTSUP, f"domain {domid} has virtual NUMA nodes, and cannot be saved"
            )
        return config

    def _info(self, domid: int) -> XenDomainInfo:
        """A guest's information. Raises ProcessLookupError, also if it is being destroyed."""
        with Xenctrl() as xenctrl:
            info = xenctrl.domain_getinfo(domid)
        if info.dying or domid == CONTROL_DOMAIN:
            raise ProcessLookupError(errno.ESRCH, f"there is no guest {domid}")
        return info

    # -- making and ending ----------------------------------------------------------------------

    def why_not_create(self, config: Mapping[str, Any]) -> str:
        """Memory is no reason if the host does not say how much it has."""
        try:
            restored_model.choose(config)
        except OSError as error:
            return error.strerror or str(error)
        with Xenctrl() as xenctrl:
            others = sum(
                info.tot_pages
                for info in xenctrl.domain_list()
                if info.domid != CONTROL_DOMAIN and not info.dying
            )
        try:
            total = memory.total_kib()
        except OSError:
            return ""
        return memory.why_no_room(memory.needed_kib(config), total, others * PAGE_KIB)

    def free_memory(self) -> int | None:
        """Unknown: xl takes memory from the control domain for a new guest, as far as that goes."""
        return None

    def why_no_postcopy(self) -> str:
        return paging_calls.why_no_paging()

    def restore_program(
        self, config: Mapping[str, Any], name: str, *, postcopy: bool
    ) -> RestoreProgram | None:
        """`xl restore -p`. It opens the file that it is to read, so we name its stdin by path. As
        any `xl restore`, it leaves a process behind that handles the domain's reboots.

        Raises as `restored_model.choose` does."""
        if postcopy:
            return None
        choice = restored_model.choose({**config, "c_info": {**config["c_info"], "name": name}})
        preface = xl_header.encode_header(json.dumps(choice.config).encode())
        command = (xl.program(), "restore", "-p", "/proc/self/fd/0")
        environment = {restored_model.SETTING: choice.setting} if choice.setting else {}
        return RestoreProgram(
            command, preface, xl.HELPER_VARIABLE, xl.complaint, environment, choice.remark
        )

    def create(self, config: Mapping[str, Any], name: str) -> int:
        """By `xl`, which finishes it in `rebuild_done`. Raises as `DomainBuild` does, and OSError
        if Xen cannot page the domain, with the reason."""
        build = DomainBuild(config, name, _LOCK_SECONDS)
        try:
            with closing(XenDomain(build.domid)) as domain:
                domain.mem_paging_enable().close()
        except BaseException:
            build.abandon()
            raise
        self._builds[build.domid] = build
        return build.domid

    def rings(self, domid: int) -> Rings:
        return self._builds[domid].rings

    def static_data_done(self, domid: int, missing: int) -> int:
        return self._builds[domid].static_data_done(missing)

    def rebuild_done(
        self,
        domid: int,
        gfns: RestoredGfns,
        xenstore: Sequence[tuple[bytes, bytes]],
        context: bytes | None,
    ) -> None:
        self._builds[domid].finish(gfns, xenstore, context)
        del self._builds[domid]

    def destroy(self, domid: int) -> None:
        if (build := self._builds.pop(domid, None)) is not None:
            build.abandon()
        self._info(domid)
        xl.run("destroy", str(domid))
        self._emulator_contexts.pop(domid, None)
        self._suspended_at.pop(domid, None)

    def clear_up(self) -> None:
        """There is nothing to do: a dead `xl` leaves at most a domain, which has a name."""

    def rename(self, domid: int, name: str) -> None:
        for row in self.domains():
            if row.domid == domid and row.name == name:
                return
            if row.name == name:
                raise FileExistsError(
                    errno.EEXIST, f"there is already a domain {name!r} ({row.domid})"
                )
        self._info(domid)
        xl.run("rename", str(domid), name)

    # -- running --------------------------------------------------------------------------------

    def pause(self, domid: int) -> None:
        self._info(domid)
        xl.run("pause", str(domid))

    def unpause(self, domid: int) -> None:
        """libxl_domain_unpause, which starts with the device model: that waits after a restore."""
        self._info(domid)
        xl.run("unpause", str(domid))

    def suspend_request(self, domid: int) -> XenSuspendRequest:
        self._info(domid)
        return XenSuspendRequest(domid)

    def resume(self, domid: int) -> None:
        """Resume with suspend_cancel, as xl does. Also withdraw a suspend request that the guest
        has not acknowledged."""
        info = self._info(domid)
        with Xenctrl() as xenctrl, Xenstore() as xenstore:
            withdraw_request(xenstore, domid)
            if state_of(info) is not GuestState.SUSPENDED:
                return
            if type_of(xenstore, info) == HVM:
                device_model.resume(domid)
            xenctrl.domain_resume(domid, fast=True)
            xenstore.resume_domain(domid)
        self._emulator_contexts.pop(domid, None)

    # -- device model ---------------------------------------------------------------------------

    def _has_device_model(self, domid: int) -> bool:
        """Whether the domain has a device model whose state is saved: whether it is HVM. Raises as
        `device_model.check_supported` does."""
        info = self._info(domid)
        with Xenstore() as xenstore:
            if type_of(xenstore, info) != HVM:
                return False
            device_model.check_supported(xenstore, domid)
        return True

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        if self._has_device_model(domid):
            device_model.set_log_dirty(domid, enable)

    def suspend_emulator(self, domid: int, live: bool) -> None:
        self._suspended_at[domid] = time.monotonic()
        if self._has_device_model(domid):
            self._emulator_contexts[domid] = device_model.suspend(domid, live)

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        if not self._has_device_model(domid):
            return []
        with Xenstore() as xenstore:
            return device_model.xenstore_data(xenstore, domid)

    def emulator_context(self, domid: int) -> bytes | None:
        """The state that `suspend_emulator` had it save. Raises EBUSY if it has not been called."""
        if not self._has_device_model(domid):
            return None
        context = self._emulator_contexts.get(domid)
        if context is None:
            raise OSError(errno.EBUSY, f"the device model of domain {domid} is not suspended")
        return context

    # -- reports --------------------------------------------------------------------------------

    def report(self, domid: int) -> GuestReport:
        """A real guest reports nothing itself; we know when it suspended."""
        info = self._info(domid)
        return GuestReport(
            state=state_of(info),
            steps=None,
            pages_checked=None,
            memory_ok=None,
            crash=None,
            suspended_at=self._suspended_at.get(domid),
            first_step_at=None,
            fault_count=None,
            fault_p50_us=None,
            fault_p99_us=None,
        )

    def verify(self, domid: int, timeout: float) -> GuestReport:
        """A real guest cannot be made to compare its memory: `memory_ok` is None."""
        return self.report(domid)
