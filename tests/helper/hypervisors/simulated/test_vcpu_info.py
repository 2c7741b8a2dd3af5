"""The page that the hypervisor itself writes: it travels with the guest, and must be there."""

from __future__ import annotations

import pytest

from tests.conftest import HostFactory
from tests.helper.hypervisors.simulated.guests import (
    LIMIT,
    MIB,
    PAGE,
    clone,
    copy_rest,
    populated,
    read_pages,
    steps_on,
    suspend,
    write_pages,
)
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.xen.vcpu_info import pages_with, scale_of
from xen_save_helper.ipc_schema.streams.pfns import Pfns
from xen_save_helper.toolstack.hosts.interface import GuestReport, GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.usefixtures("no_leaks")


def needed(host: SimulatedHost, domid: int) -> Pfns:
    with open_on_host(host.directory, domid) as domain:
        return domain.needed_at_once()


def start(host: SimulatedHost, domid: int) -> GuestReport:
    """Let the guest start: it registers its page before `unpause` returns."""
    host.unpause(domid)
    return host.report(domid)


def test_it_is_an_ordinary_page_that_the_guest_writes_too(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "write-heavy")
    (pfn,) = needed(host, domid)
    steps_on(host, domid)
    suspend(host, domid)
    with open_on_host(host.directory, domid) as domain:
        before = domain.shared.writes[pfn]
        host.resume(domid)
        assert steps_on(host, domid).state is GuestState.RUNNING
        assert domain.shared.writes[pfn] > before
    assert host.verify(domid, LIMIT).memory_ok


def test_the_search_on_xen_would_find_it(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "random")
    steps_on(host, domid)
    suspend(host, domid)
    with open_on_host(host.directory, domid) as domain:
        pfns = populated(domain)
        memory = memoryview(read_pages(domain, pfns))
        scale = scale_of(domain.tsc_info().khz)
    assert [pfns[page] for page in pages_with(memory, scale)] == list(needed(host, domid))


def test_the_guest_registers_it_wherever_it_starts(host_factory: HostFactory) -> None:
    source, target = host_factory("source"), host_factory("target")
    domid = source.create_guest("g", 4 * MIB, "random")
    steps_on(source, domid)
    suspend(source, domid)
    new = clone(source, domid, target, "g")
    assert not needed(target, new)
    assert start(target, new).state is GuestState.RUNNING
    assert needed(target, new) == needed(source, domid)
    steps_on(target, new)


def test_a_hypervisor_does_not_wait_for_it(host_factory: HostFactory) -> None:
    source, target = host_factory("source"), host_factory("target")
    domid = source.create_guest("g", 4 * MIB, "idle")
    suspend(source, domid)
    new = clone(source, domid, target, "g")
    with open_on_host(target.directory, new) as domain:
        paging = domain.mem_paging_enable()
        paging.evict(needed(source, domid))
        report = start(target, new)
        paging.close()
    assert report.state is GuestState.CRASHED
    assert report.crash is not None
    assert "vcpu_info: pfn 0x100 is paged out, and it does not wait" in report.crash
    assert report.memory_ok, "it was lost, not damaged"


def test_an_older_one_is_noticed(host_factory: HostFactory) -> None:
    source, target = host_factory("source"), host_factory("target")
    domid = source.create_guest("g", 4 * MIB, "idle")
    suspend(source, domid)
    page = needed(source, domid)
    with open_on_host(source.directory, domid) as old:
        early = read_pages(old, page)
        source.resume(domid)
        steps_on(source, domid)
        suspend(source, domid)
        new = target.create(source.config(domid), "g")
        with open_on_host(target.directory, new) as domain:
            pfns = populated(old)
            domain.populate_physmap_exact(pfns)
            write_pages(domain, pfns, read_pages(old, pfns))
            write_pages(domain, page, early)
    copy_rest(source, domid, target, new)
    report = start(target, new)
    assert report.state is GuestState.CRASHED
    assert not report.memory_ok
    assert report.crash is not None
    assert "the time in the vcpu_info has version" in report.crash


def test_the_last_dirty_bitmap_has_it(host: SimulatedHost) -> None:
    """The hypervisor's own writes are not logged, so an idle guest dirties nothing before."""
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
        steps_on(host, domid)
        suspend(host, domid)
        dirty = Bitmap(domain.maximum_gpfn() + 1)
        assert domain.logdirty_clean(dirty) == 1
        assert dirty[domain.needed_at_once()[0]]
        domain.logdirty_off()


def test_it_is_never_given_back(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    (pfn,) = needed(host, domid)
    assert host.balloon(domid, 4 * MIB // PAGE) == 4 * MIB // PAGE - pfn - 1
    assert host.balloon(domid, 1) == 0
    steps_on(host, domid)
