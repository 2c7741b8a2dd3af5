"""Shared by the tests of the simulated hypervisor."""

from __future__ import annotations

import select
import time

from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.simulated.domain import SimulatedDomain, open_on_host
from xen_save_helper.ipc_schema.streams.page_lists import contents_mask
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of, selected
from xen_save_helper.toolstack.hosts.interface import GuestReport, SuspendRequest, SuspendState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

MIB = 1 << 20
PAGE = 4096
LIMIT = 20.0


def suspended(request: SuspendRequest) -> SuspendState:
    """Wait on the request's descriptor until the guest has suspended or crashed."""
    poller = select.poll()
    poller.register(request.fileno(), select.POLLIN)
    end = time.monotonic() + LIMIT
    while True:
        state = request.state()
        if state in (SuspendState.SUSPENDED, SuspendState.CRASHED):
            return state
        assert poller.poll(max(0.0, end - time.monotonic()) * 1000), f"the guest is still {state}"


def suspend(host: SimulatedHost, domid: int) -> None:
    request = host.suspend_request(domid)
    try:
        assert suspended(request) is SuspendState.SUSPENDED
    finally:
        request.close()


def steps_on(host: SimulatedHost, domid: int) -> GuestReport:
    """Wait until the guest has made more steps than it had; it must be sound."""
    before = host.report(domid).steps
    report: GuestReport = wait_for(
        lambda: (now := host.report(domid)).steps > before + 2 and now,
        f"domain {domid} takes steps: {host.report(domid)}",
    )
    assert report.memory_ok
    return report


def populated(domain: SimulatedDomain) -> Pfns:
    """All pfns of the domain with a page."""
    pfns = pfns_of(range(domain.maximum_gpfn() + 1))
    return selected(pfns, contents_mask(domain.get_pfn_type_batch(pfns)))


def read_pages(domain: SimulatedDomain, pfns: Pfns) -> bytes:
    views = domain.foreign_map(pfns)
    data = b"".join(views)
    domain.foreign_unmap(views)
    return data


def write_pages(domain: SimulatedDomain, pfns: Pfns, data: bytes) -> None:
    views = domain.foreign_map(pfns, writable=True)
    done = 0
    for view in views:
        view[:] = data[done : done + len(view)]
        done += len(view)
    domain.foreign_unmap(views)
    assert done == len(data)


def hvm_params(domain: SimulatedDomain) -> list[tuple[int, int]]:
    """(index, value) of each parameter that is not 0."""
    return [(index, value) for index, value in enumerate(domain.shared.domain.hvm_params) if value]


def copy_rest(source: SimulatedHost, domid: int, target: SimulatedHost, new: int) -> None:
    """Copy everything but the memory of a suspended domain to a new one."""
    with (
        open_on_host(source.directory, domid) as old,
        open_on_host(target.directory, new) as domain,
    ):
        domain.hvm_setcontext(old.hvm_getcontext())
        for index, value in hvm_params(old):
            domain.hvm_param_set(index, value)
        domain.set_tsc_info(old.tsc_info())
        domain.set_cpu_policy(*old.cpu_policy())
    target.restore_emulator(
        new, source.emulator_xenstore_data(domid), source.emulator_context(domid)
    )


def clone(source: SimulatedHost, domid: int, target: SimulatedHost, name: str) -> int:
    """A complete, paused copy of a suspended domain."""
    new = target.create(source.config(domid), name)
    with (
        open_on_host(source.directory, domid) as old,
        open_on_host(target.directory, new) as domain,
    ):
        pfns = populated(old)
        domain.populate_physmap_exact(pfns)
        write_pages(domain, pfns, read_pages(old, pfns))
    copy_rest(source, domid, target, new)
    return new
