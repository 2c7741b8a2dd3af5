"""A host with one guest that does what a test says (see `tests.toolstack.operations.driven`)."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xen_save_helper.helper.hypervisors.interface import DomainInfo
from xen_save_helper.toolstack.hosts.interface import (
    DomainSummary,
    GuestReport,
    GuestState,
    RestoredGfns,
    RestoreProgram,
    Rings,
    SuspendState,
)

DOMID = 7
PID = 4711


class DrivenRequest:
    """SuspendRequest of the driven guest."""

    def __init__(self, guest: DrivenGuest) -> None:
        self._guest = guest
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.closed = False

    def fileno(self) -> int:
        return self._event

    def state(self) -> SuspendState:
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            pass
        return self._guest.state

    def changed(self) -> None:
        os.eventfd_write(self._event, 1)

    def withdraw(self) -> bool:
        """A guest that has acknowledged may suspend after all: `DrivenGuest.obstinate`."""
        guest = self._guest
        if guest.state is SuspendState.REQUESTED or (
            guest.state is SuspendState.ACKNOWLEDGED and not guest.obstinate
        ):
            guest.asked = False
            return True
        return False

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self._event)


class DrivenGuest:
    """How far the guest has got with a suspend request; `asked` while it knows of one."""

    def __init__(self) -> None:
        self.state = SuspendState.REQUESTED
        self.asked = False
        self.obstinate = False
        self.request: DrivenRequest | None = None

    def goes_to(self, state: SuspendState) -> None:
        self.state = state
        if self.request is not None and not self.request.closed:
            self.request.changed()

    @property
    def may_suspend(self) -> bool:
        return self.state is SuspendState.SUSPENDED or (
            self.asked and self.state in (SuspendState.REQUESTED, SuspendState.ACKNOWLEDGED)
        )


class DrivenDomain:
    domid = DOMID

    def __init__(self, host: DrivenHost) -> None:
        self._host = host

    def getinfo(self) -> DomainInfo:
        return DomainInfo(DOMID, True, False, False, None, 1, 4)

    def logdirty_off(self) -> None:
        self._host.logdirty = False

    def close(self) -> None:
        pass


class DrivenHost:
    """A host with one guest, or none as long as it is not made."""

    state_dir = control_dir = Path("/nowhere")

    def __init__(self, *, exists: bool, device_model: bool) -> None:
        self.exists = exists
        self.device_model = device_model
        self.guest = DrivenGuest()
        self.logdirty = False
        self.unpaused = 0
        self.restored: list[object] = []

    def domains(self) -> list[DomainSummary]:
        return [self.summary(DOMID)] if self.exists else []

    def summary(self, domid: int) -> DomainSummary:
        self._need(domid)
        return DomainSummary(DOMID, "g", 4096, "hvm", None, GuestState.RUNNING, self.logdirty, PID)

    def domain(self, domid: int) -> DrivenDomain:
        self._need(domid)
        return DrivenDomain(self)

    def _need(self, domid: int) -> None:
        if domid != DOMID or not self.exists:
            raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}")

    def create(self, config: Mapping[str, Any], name: str) -> int:
        assert not self.exists
        self.exists = True
        return DOMID

    def destroy(self, domid: int) -> None:
        self._need(domid)
        self.exists = False

    def unpause(self, domid: int) -> None:
        self._need(domid)
        self.unpaused += 1

    def suspend_request(self, domid: int) -> DrivenRequest:
        self._need(domid)
        assert self.guest.request is None, "asked twice"
        self.guest.asked = True
        self.guest.request = DrivenRequest(self.guest)
        return self.guest.request

    def switch_qemu_logdirty(self, domid: int, enable: bool) -> None:
        self._need(domid)

    def suspend_emulator(self, domid: int, live: bool) -> None:
        self._need(domid)
        assert self.guest.state is SuspendState.SUSPENDED

    def emulator_xenstore_data(self, domid: int) -> list[tuple[bytes, bytes]]:
        return [(b"physmap", b"1")] if self.device_model else []

    def emulator_context(self, domid: int) -> bytes | None:
        return b"QEVM" if self.device_model else None

    def rings(self, domid: int) -> Rings:
        return Rings()

    def static_data_done(self, domid: int, missing: int) -> int:
        return 0

    def rebuild_done(
        self,
        domid: int,
        gfns: RestoredGfns,
        xenstore: Sequence[tuple[bytes, bytes]],
        context: bytes | None,
    ) -> None:
        self._need(domid)
        self.restored.append((list(xenstore), context))

    # What neither a save nor a restore may ask for

    def find(self, name: str) -> int:
        raise AssertionError

    def free_memory(self) -> int | None:
        raise AssertionError

    def restore_program(
        self, config: Mapping[str, Any], name: str, *, postcopy: bool
    ) -> RestoreProgram | None:
        raise AssertionError

    def config(self, domid: int) -> dict[str, Any]:
        raise AssertionError

    def clear_up(self) -> None:
        raise AssertionError

    def pause(self, domid: int) -> None:
        raise AssertionError

    def rename(self, domid: int, name: str) -> None:
        raise AssertionError

    def resume(self, domid: int) -> None:
        raise AssertionError

    def report(self, domid: int) -> GuestReport:
        raise AssertionError

    def verify(self, domid: int, timeout: float) -> GuestReport:
        raise AssertionError
