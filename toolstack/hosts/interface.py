"""What the toolstack asks of a host: its domains, under libxl's names.

Failures are `OSError` with the errno that libxc or xenstore would leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from xen_save_helper.helper.hypervisors.interface import ControlledDomain


class GuestState(Enum):
    """What `list` shows of a domain."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    SHUT_DOWN = "shut down"
    """It has powered off, or is to be built again (reboot): it cannot be resumed."""


class SuspendState(Enum):
    """How far a suspend request has got (control/shutdown)."""

    REQUESTED = "requested"
    ACKNOWLEDGED = "acknowledged"
    SUSPENDED = "suspended"
    REFUSED = "refused"
    CRASHED = "crashed"


class SuspendRequest(Protocol):
    """A suspend request in progress."""

    def fileno(self) -> int:
        """Polls readable when `state` may have changed."""

    def state(self) -> SuspendState:
        """The request's state now; does not block."""

    def withdraw(self) -> bool:
        """Withdraw the request (libxl: writes an empty control/shutdown). Returns True if the guest
        will no longer suspend for it, False if it has suspended or is about to."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class DomainSummary:
    """A row of `list`. `memory` is in bytes, `type` is libxl's (`pv`, `pvh`, `hvm`).

    `log_dirty` says whether log-dirty mode is on, None if the hypervisor does not say. `workload`
    and `pid` are a simulated guest's, None for others. `uuid`, in lower case, stays with the guest
    from host to host; None if its configuration has none.
    """

    domid: int
    name: str
    memory: int
    type: str
    workload: str | None
    state: GuestState
    log_dirty: bool | None
    pid: int | None
    uuid: str | None = None


@dataclass(frozen=True)
class GuestReport:
    """What is known of a guest, and what it reports itself; None for what a guest that does not
    know of us would report. Times are CLOCK_MONOTONIC seconds, None if that never happened.

    `pages_checked` counts page comparisons since the domain was made; `memory_ok` is False once
    one was wrong, and `crash` says which. Latencies (of accesses to evicted pages, measured in the
    guest) are in microseconds.
    """

    state: GuestState
    steps: int | None
    pages_checked: int | None
    memory_ok: bool | None
    crash: str | None
    suspended_at: float | None
    first_step_at: float | None
    fault_count: int | None
    fault_p50_us: float | None
    fault_p99_us: float | None


@dataclass(frozen=True)
class RestoreProgram:
    """A program of the host's own toolstack that makes a domain from a libxl stream on its stdin.

    `preface` is what it reads ahead of the stream. If it exits with 0, the domain exists, paused.
    If its stdin ends early it gives up in order, and no domain is left. It starts the save helper
    whose path is in the environment variable `helper_variable`. `complaint` picks, from the lines
    on its stderr, the one that says best why it failed. `environment` is for the program and its
    helper; `remark` is a line for people before it starts, "" for none.
    """

    command: tuple[str, ...]
    preface: bytes
    helper_variable: str
    complaint: Callable[[Sequence[str]], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


class Rings(NamedTuple):
    """The event channels of xenstore's and the console's ring, and the domains at their other
    ends (arguments of xc_domain_restore)."""

    store_evtchn: int = 0
    store_domid: int = 0
    console_evtchn: int = 0
    console_domid: int = 0


class RestoredGfns(NamedTuple):
    """Where a restored domain's rings are; 0 for none (results of xc_domain_restore)."""

    store_gfn: int = 0
    console_gfn: int = 0


class Host(Protocol):
    """A host's domains, as libxl sees them. Names are unique on a host.

    Raises ProcessLookupError (ESRCH) for an unknown domid, FileExistsError (EEXIST) for a name that
    is taken, TimeoutError (ETIMEDOUT) if a domain's process does not answer.
    """

    state_dir: Path
    """The host's directory in which the toolstack keeps its journal."""

    control_dir: Path
    """The directory of the sockets on which processes of ours answer (`ipc_schema.control`)."""

    def domains(self) -> list[DomainSummary]:
        """libxl_list_domain, without the control domain."""

    def summary(self, domid: int) -> DomainSummary:
        """libxl_domain_info: one row of `domains`, without looking at the others."""

    def find(self, name: str) -> int:
        """The domid of `name`. Raises ProcessLookupError."""

    def free_memory(self) -> int | None:
        """The bytes that new guests may have, 0 or more; None if there is no bound, or none that
        can be told before a guest is made."""

    def domain(self, domid: int) -> ControlledDomain:
        """The domain as libxc has it; the caller closes it."""

    def why_not_create(self, config: Mapping[str, Any]) -> str:
        """Why a domain of this configuration cannot be made here, as far as that is certain before
        we try: its kind, and free memory. "" if no reason is known."""

    def why_no_postcopy(self) -> str:
        """Why no domain can be restored by postcopy here, with the way out; "" if it can."""

    def restore_program(
        self, config: Mapping[str, Any], name: str, *, postcopy: bool
    ) -> RestoreProgram | None:
        """How the host's own toolstack restores a domain `name` of `config`; None if we restore it,
        by `create`, a helper, and `rebuild_done`, as always if it may come by postcopy. Raises
        OSError if it is already certain that it cannot be restored."""

    def create(self, config: Mapping[str, Any], name: str) -> int:
        """Make a domain to be restored: paused, without pages or registers. `config` is what
        `config()` returns. Raises ValueError for an invalid configuration."""

    def rings(self, domid: int) -> Rings:
        """Of a domain that `create` has made: what its helper must know of its rings."""

    def static_data_done(self, domid: int, missing: int) -> int:
        """The domain's static data have come, but for `missing` (XGR_SDD_MISSING_*), which is then
        made up for. Returns the callback's answer."""

    def config(self, domid: int) -> dict[str, Any]:
        """The stored configuration, libxl_domain_config's JSON, as it goes into the xl header."""

    def destroy(self, domid: int) -> None:
        """End the domain and all that belongs to it, whatever state it is in."""

    def clear_up(self) -> None:
        """Remove what is left of processes that died while making or ending a domain."""

    def pause(self, domid: int) -> None:
        """libxl_domain_pause."""

    def unpause(self, domid: int) -> None:
        """libxl_domain_unpause. No error if it runs already."""

    def rename(self, domid: int, name: str) -> None:
        """libxl_domain_rename. No error if that is its name already."""

    def suspend_request(self, domid: int) -> SuspendRequest:
        """Ask the domain to suspend (the first half of libxl__domain_suspend). The caller closes
        the request."""

    def resume(self, domid: int) -> None:
        """libxl_domain_resume: let a suspended domain run on here. No error if it never
        suspended."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        """libxl__domain_common_switch_qemu_logdirty. Does nothing if the mode is as asked already,
        or if there is no device model."""

    def suspend_emulator(self, domid: int, live: bool) -> None:
        """libxl__domain_suspend_device_model: the domain has just suspended, and from here on its
        device model does not write its memory. `live`: the domain will go on elsewhere. `resume`
        undoes this. Does nothing if there is no device model."""

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        """(path relative to the device model's xenstore directory, value) of each entry; none if
        there is no device model."""

    def emulator_context(self, domid: int) -> bytes | None:
        """The saved state of the suspended domain's device model; None if there is none."""

    def rebuild_done(
        self,
        domid: int,
        gfns: RestoredGfns,
        xenstore: Sequence[tuple[bytes, bytes]],
        context: bytes | None,
    ) -> None:
        """Finish a domain whose memory and registers are there, or are being paged in
        (domcreate_rebuild_done): its rings, its devices, and its device model from what was saved,
        if it has one. It stays paused."""

    def report(self, domid: int) -> GuestReport:
        """Report what is known of the guest now."""

    def verify(self, domid: int, timeout: float) -> GuestReport:
        """Have the guest compare every page of its memory now, and report."""
