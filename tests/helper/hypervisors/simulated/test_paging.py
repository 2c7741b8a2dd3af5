"""Paging: a guest on userfaultfd, with real page faults."""

from __future__ import annotations

import errno
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from tests.conftest import HostFactory
from tests.helper.hypervisors.simulated.guests import (
    LIMIT,
    MIB,
    PAGE,
    copy_rest,
    populated,
    read_pages,
    steps_on,
    suspend,
    write_pages,
)
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.interface import Paging, PagingRequest
from xen_save_helper.helper.hypervisors.simulated.domain import SimulatedDomain, open_on_host
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.usefixtures("no_leaks")


@dataclass
class Receiver:
    """A paused copy of a guest, some of its pages paged out (`out`), and the pager. The page that
    the hypervisor does not wait for is here."""

    host: SimulatedHost
    domid: int
    domain: SimulatedDomain
    paging: Paging
    contents: bytes
    out: set[int]

    def page(self, pfn: int) -> memoryview:
        return memoryview(self.contents)[pfn * PAGE : (pfn + 1) * PAGE]

    def requests(self, limit: float = LIMIT) -> list[PagingRequest]:
        """Wait on the descriptor, then take all requests."""
        poller = select.poll()
        poller.register(self.paging.fileno(), select.POLLIN)
        assert poller.poll(limit * 1000), "no request came"
        return self.paging.take_requests()

    def load(self, *pfns: int) -> None:
        for pfn in pfns:
            self.paging.load(pfn, self.page(pfn))
        self.out.difference_update(pfns)

    def serve_all(self) -> int:
        """From the first fault on, answer faults first, and push the rest meanwhile; returns how
        many pages were requested."""
        faults = 0
        requests = self.requests()
        while self.out:
            wanted = [r.pfn for r in requests if r.pfn in self.out]
            faults += len(wanted)
            rest = sorted(self.out - set(wanted))
            self.load(*wanted, *rest[:4])
            requests = self.paging.take_requests()
        return faults


@contextmanager
def receiver(
    host_factory: HostFactory, workload: str, first_out: int, memory: int = 4 * MIB
) -> Iterator[Receiver]:
    source, target = host_factory("source"), host_factory("target")
    domid = source.create_guest("g", memory, workload)
    steps_on(source, domid)
    suspend(source, domid)
    new = target.create(source.config(domid), "g")
    with (
        open_on_host(source.directory, domid) as old,
        open_on_host(target.directory, new) as domain,
    ):
        pfns = populated(old)
        contents = read_pages(old, pfns)
        domain.populate_physmap_exact(pfns)
        write_pages(domain, pfns[:first_out], contents[: first_out * PAGE])
        needed = old.needed_at_once()
        write_pages(domain, needed, read_pages(old, needed))
        copy_rest(source, domid, target, new)
        paging = domain.mem_paging_enable()
        try:
            out = set(pfns[first_out:]) - set(needed)
            paging.evict(pfns_of(sorted(out)))
            yield Receiver(target, new, domain, paging, contents, out)
        finally:
            paging.close()


@pytest.mark.parametrize("workload", ["idle", "sequential", "random", "write-heavy"])
def test_a_guest_runs_on_while_its_memory_arrives(host_factory: HostFactory, workload: str) -> None:
    with receiver(host_factory, workload, first_out=8) as there:
        there.host.unpause(there.domid)
        assert there.serve_all() > 0
        there.paging.close()
        steps_on(there.host, there.domid)
        report = there.host.verify(there.domid, LIMIT)
        assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)
        assert report.fault_count > 0
        assert report.fault_p50_us is not None
        assert report.fault_p99_us is not None
        assert 0 < report.fault_p50_us <= report.fault_p99_us < 1e6 * LIMIT


def test_the_guest_waits_for_the_page_it_needs_and_for_no_other(host_factory: HostFactory) -> None:
    with receiver(host_factory, "idle", first_out=0) as there:
        there.host.unpause(there.domid)
        (request,) = there.requests()
        assert not request.dropped
        # The toolstack's requests do not wait for the guest.
        assert there.host.domains()[0].state is GuestState.RUNNING
        assert there.domain.getinfo().shutdown_reason is None
        others = sorted(there.out - {request.pfn})[:100]
        there.load(*others)
        assert there.paging.take_requests() == []
        there.load(request.pfn)
        there.serve_all()
        steps_on(there.host, there.domid)


def test_latency_is_that_of_the_wait(host_factory: HostFactory) -> None:
    with receiver(host_factory, "idle", first_out=1023) as there:
        there.host.unpause(there.domid)
        (request,) = there.requests()
        waited = time.perf_counter()
        while time.perf_counter() < waited + 0.05:
            assert there.paging.take_requests() == []
        there.load(request.pfn)
        report = wait_for(
            lambda: (now := there.host.report(there.domid)).fault_count and now, "a fault counted"
        )
        assert report.fault_p99_us > 0.94 * 50_000


def test_evicted_pages_cannot_be_mapped_nor_evicted_again(host_factory: HostFactory) -> None:
    with receiver(host_factory, "idle", first_out=100) as there:
        with pytest.raises(OSError, match=r"0x64 .* is paged out"):
            there.domain.foreign_map(pfns_of([99, 100]))
        for pfn in (100, 5000):
            with pytest.raises(OSError, match="no page that could") as caught:
                there.paging.evict(pfns_of([pfn]))
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="0x63 is not paged out"):
            there.load(99)
        with pytest.raises(OSError, match="5 bytes are not whole pages"):
            there.paging.load(100, memoryview(b"short"))
        with pytest.raises(OSError, match="on already") as caught:
            there.domain.mem_paging_enable()
        assert caught.value.errno == errno.EBUSY


def test_paging_is_for_a_domain_that_stands_still(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain, pytest.raises(OSError, match="paused"):
        domain.mem_paging_enable()


def test_a_page_that_the_guest_gives_back_is_dropped(host_factory: HostFactory) -> None:
    """The guest is far from the end of its memory when it gives it back."""
    end = 16 * MIB // PAGE
    given = set(range(end - 10, end))
    with (
        receiver(host_factory, "idle", first_out=end - 10, memory=16 * MIB) as there,
        ThreadPoolExecutor(1) as pool,
    ):
        there.host.unpause(there.domid)
        giving = pool.submit(there.host.balloon, there.domid, 20)
        requests = there.requests()
        assert giving.result(LIMIT) == 20
        assert {request.pfn for request in requests if request.dropped} == given
        # Their contents still arrive, and are dropped.
        there.load(*given)
        assert set(there.domain.get_pfn_type_batch(pfns_of(given))) == {0xF0}
        there.load(*there.out - given)
        report = there.host.verify(there.domid, LIMIT)
        assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)


@pytest.mark.parametrize("waits", [True, False])
def test_a_guest_whose_pager_goes_crashes_and_never_reads_zeros(
    host_factory: HostFactory, waits: bool
) -> None:
    with receiver(host_factory, "idle", first_out=0 if waits else 600) as there:
        there.host.unpause(there.domid)
        if waits:
            there.requests()
        there.paging.close()
        report = wait_for(
            lambda: (now := there.host.report(there.domid)).state is GuestState.CRASHED and now,
            "the guest crashes",
        )
        assert "paged out, and nobody serves paging" in report.crash


def test_a_guest_that_waits_for_a_page_can_be_destroyed(host_factory: HostFactory) -> None:
    with receiver(host_factory, "idle", first_out=0) as there:
        there.host.unpause(there.domid)
        there.requests()
        started = time.monotonic()
        there.host.destroy(there.domid)
        assert time.monotonic() < started + 5
        with pytest.raises(ProcessLookupError):
            there.domain.getinfo()


PAGER = """
import pathlib
import sys
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
domain = open_on_host(pathlib.Path(sys.argv[1]), int(sys.argv[2]))
paging = domain.mem_paging_enable()
paging.evict(pfns_of(set(range(1024)) - set(domain.needed_at_once())))
print("out", flush=True)
sys.stdin.read()
"""


def test_a_pager_that_is_killed_leaves_a_guest_that_crashes(host_factory: HostFactory) -> None:
    host = host_factory("host")
    domid = host.create_guest("g", 4 * MIB, "idle")
    host.pause(domid)
    with subprocess.Popen(
        [sys.executable, "-c", PAGER, str(host.directory), str(domid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as pager:
        assert pager.stdout is not None
        assert pager.stdout.readline() == b"out\n"
        steps = host.report(domid).steps
        host.unpause(domid)
        pager.kill()
    report = wait_for(
        lambda: (now := host.report(domid)).state is GuestState.CRASHED and now,
        "the guest crashes",
    )
    assert report.steps <= steps + 1
    assert "paged out" in report.crash


def test_a_guest_without_evicted_pages_outlives_its_pager(host_factory: HostFactory) -> None:
    with receiver(host_factory, "random", first_out=0) as there:
        there.host.unpause(there.domid)
        there.serve_all()
        there.paging.close()
        steps_on(there.host, there.domid)
        there.host.pause(there.domid)
        with open_on_host(there.host.directory, there.domid) as domain:
            domain.mem_paging_enable().close()
        there.host.unpause(there.domid)
        steps_on(there.host, there.domid)
        assert len(populated(there.domain)) >= 1027
