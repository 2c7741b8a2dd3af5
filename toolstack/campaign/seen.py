"""What can be seen at a simulated host at one time."""

from __future__ import annotations

from typing import Final

from xen_save_helper.toolstack.campaign import processes
from xen_save_helper.toolstack.campaign.evidence import Guest
from xen_save_helper.toolstack.hosts.interface import DomainSummary, GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

_HOST_FILES: Final = frozenset({"control", "domains", "lock", "operations.lock", "xen-host.json"})
_SETTLE_SECONDS: Final = 2.0
_VERIFY_SECONDS: Final = 20.0


def guest_seen(host: SimulatedHost, row: DomainSummary, most: int, *, verify: bool) -> Guest:
    """A guest as it is now; `most` is the number of descriptors that its process should have."""
    memory_ok: bool | None = None
    crash: str | None = None
    state = row.state
    try:
        report = host.report(row.domid)
        if verify and report.state is GuestState.RUNNING:
            report = host.verify(row.domid, _VERIFY_SECONDS)
            memory_ok = report.memory_ok
        state, crash = report.state, report.crash
    except (TimeoutError, ConnectionError, ProcessLookupError) as error:
        crash = f"it does not answer: {error}"
    return Guest(
        row.name,
        state.value,
        bool(row.log_dirty),
        memory_ok,
        crash,
        processes.settled_descriptors(row.pid, most, _SETTLE_SECONDS) if row.pid else {},
    )


def files_seen(host: SimulatedHost) -> tuple[str, ...]:
    """The names of files that belong neither to a guest nor to the host."""
    known = {str(row.domid) for row in host.domains()}
    directory = host.control_dir
    return (
        *sorted(f"control/{path.name}" for path in directory.glob("*")),
        *sorted(path.name for path in host.directory.iterdir() if path.name not in _HOST_FILES),
        *sorted(
            f"domains/{path.name}"
            for path in (host.directory / "domains").iterdir()
            if path.name not in known
        ),
    )
