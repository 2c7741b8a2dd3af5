"""What the toolstack asks of a host: its domains, under libxl's names.

Failures are `OSError` with the errno that libxc or xenstore would leave.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from xen_save_helper.helper.hypervisors.interface import ControlledDomain


class GuestState(Enum):
    """What `list` shows of a domain."""

    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    CRASHED = "crashed"
    SHUT_DOWN = "shut down"
    """It has powered itself off, or waits to be made anew (reboot): there is nothing to run on."""


class SuspendState(Enum):
    """How far a request to suspend has come (control/shutdown)."""

    REQUESTED = "requested"
    ACKNOWLEDGED = "acknowledged"
    SUSPENDED = "suspended"
    REFUSED = "refused"
    CRASHED = "crashed"


class SuspendRequest(Protocol):
    """A request to suspend that is under way."""

    def fileno(self) -> int:
        """Polls readable when `state` may have changed."""

    def state(self) -> SuspendState:
        """Where the request stands now; does not block."""

    def withdraw(self) -> bool:
        """Take the request back (libxl: writes control/shutdown empty). True where the guest will
        not suspend for it any more, False where it has suspended or is about to."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class DomainSummary:
    """A row of `list`. `memory` in octets; `type` is libxl's (`pv`, `pvh`, `hvm`).

    `log_dirty` says whether log-dirty mode is on, None where the hypervisor does not tell.
    `workload` and `pid` are a simulated guest's, None for others. `uuid` goes with the guest from
    host to host, in lower case; None if its configuration has none.
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
    """What is known of a guest, and what it says of itself. Times are CLOCK_MONOTONIC seconds, None
    where it never was. A guest that knows nothing of us says nothing: None in all that is its own.

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

    `preface` are the octets that it wants ahead of the stream. Where it exits with 0, the domain is
    there, paused. An early end of its stdin makes it give up in order: then no domain is left. It
    starts the save helper whose path stands in the environment variable `helper_variable`.
    `complaint` picks the line that says best why it failed from those that it wrote to stderr.
    `environment` is for the program and its helper; `remark` is a line for people before it starts,
    empty where there is nothing to say.
    """

    command: tuple[str, ...]
    preface: bytes
    helper_variable: str
    complaint: Callable[[Sequence[str]], str]
    environment: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""


class Host(Protocol):
    """A host's domains, as libxl sees them. Names are unique on a host.

    Raises ProcessLookupError (ESRCH) for a domid that there is not, FileExistsError (EEXIST) for
    a name that is taken, TimeoutError (ETIMEDOUT) where a domain's process does not answer.
    """

    state_dir: Path
    """A directory of the host that the toolstack keeps its journal in."""

    def domains(self) -> list[DomainSummary]:
        """libxl_list_domain, without the control domain."""

    def find(self, name: str) -> int:
        """The domid of `name`. Raises ProcessLookupError."""

    def domain(self, domid: int) -> ControlledDomain:
        """The domain as libxc has it; the caller closes it."""

    def why_not_create(self, config: Mapping[str, Any]) -> str:
        """Why no domain of this configuration can be made here, as far as that can be known for
        certain before it is: what it is, and free memory. "" if nothing is known."""

    def why_no_postcopy(self) -> str:
        """Why no domain can be restored by postcopy here, with the way out; "" if it can."""

    def restore_program(self, config: Mapping[str, Any], name: str) -> RestoreProgram | None:
        """Where restoring is the host's own toolstack's: how it makes a domain `name` of `config`.
        None where it is ours: `create`, a helper, `restore_emulator`. Raises OSError where it is
        known already that this cannot be."""

    def create(self, config: Mapping[str, Any], name: str) -> int:
        """A new domain for a restore: paused, no pages, no registers. `config` is as `config`
        gives it. Raises ValueError for a configuration that cannot be."""

    def config(self, domid: int) -> dict[str, Any]:
        """The stored configuration, libxl_domain_config's JSON: what goes into the xl header."""

    def destroy(self, domid: int) -> None:
        """End the domain and all that belongs to it, whatever state it is in."""

    def clear_up(self) -> None:
        """Remove what processes left that died while they made or ended a domain."""

    def pause(self, domid: int) -> None:
        """libxl_domain_pause."""

    def unpause(self, domid: int) -> None:
        """libxl_domain_unpause. No error where it runs."""

    def rename(self, domid: int, name: str) -> None:
        """libxl_domain_rename. No error where that is its name."""

    def suspend_request(self, domid: int) -> SuspendRequest:
        """Ask the domain to suspend (the first half of libxl__domain_suspend); the caller closes
        the request."""

    def resume(self, domid: int) -> None:
        """libxl_domain_resume: a suspended domain runs on here. No error where it never
        suspended."""

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        """libxl__domain_common_switch_qemu_logdirty. No error where it is so already; nothing to do
        where there is no device model."""

    def suspend_emulator(self, domid: int, live: bool) -> None:
        """libxl__domain_suspend_device_model: the domain has just suspended; from here on its
        device model writes no memory of it. `live`: the domain is to go on elsewhere. `resume`
        undoes it. Nothing to do where there is no device model."""

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        """(path relative to the device model's xenstore directory, value) of each entry; empty
        where there is no device model."""

    def emulator_context(self, domid: int) -> bytes | None:
        """Save the device model's state (the domain is suspended); None where there is none."""

    def restore_emulator(
        self, domid: int, xenstore: Sequence[tuple[bytes, bytes]], context: bytes | None
    ) -> None:
        """Start the device model of a restored domain from what was saved."""

    def report(self, domid: int) -> GuestReport:
        """What is known of the guest now."""

    def verify(self, domid: int, timeout: float) -> GuestReport:
        """Have the guest compare every page of its memory now, and report."""
