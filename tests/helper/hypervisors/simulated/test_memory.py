"""Guests' memory: log-dirty that loses nothing, mapping, populating, and what crashes a guest."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import signal
from itertools import compress, count
from pathlib import Path
from random import Random

import pytest

from tests.conftest import HostFactory
from tests.helper.hypervisors.simulated.guests import (
    LIMIT,
    MIB,
    PAGE,
    clone,
    populated,
    read_pages,
    steps_on,
    suspend,
    write_pages,
)
from tests.waiting import wait_for
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.hypervisors.simulated import control
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.mark.parametrize(
    ("workload", "rate"), [("sequential", 30_000.0), ("random", 300_000.0), ("write-heavy", None)]
)
def test_rounds_by_log_dirty_assemble_the_suspended_memory(
    host: SimulatedHost, workload: str, rate: float | None
) -> None:
    """Precopy depends on this: log-dirty mode alone says what to copy, and pages are read while
    they are written; a page missed is a page wrong."""
    domid = host.create_guest("g", 8 * MIB, workload, rate=rate)
    chance = Random(5)
    with open_on_host(host.directory, domid) as domain:
        everything = populated(domain)
        dirty = Bitmap(domain.maximum_gpfn() + 1)
        pending = set[int]()
        domain.logdirty_enable()
        copies = bytearray(read_pages(domain, everything))
        for _ in range(100):
            assert domain.logdirty_clean(dirty) == dirty.count(1)
            pending.update(compress(count(), dirty))
            for pfn in chance.sample(sorted(pending), min(len(pending), 200)):
                copies[pfn * PAGE : (pfn + 1) * PAGE] = read_pages(domain, pfns_of([pfn]))
                pending.remove(pfn)
        suspend(host, domid)
        domain.logdirty_clean(dirty)
        for pfn in pending | set(compress(count(), dirty)):
            copies[pfn * PAGE : (pfn + 1) * PAGE] = read_pages(domain, pfns_of([pfn]))
        assert bytes(copies) == read_pages(domain, everything)
        assert domain.logdirty_clean(dirty) == 0, "a suspended guest writes nothing"
        domain.logdirty_off()


def test_an_idle_guest_dirties_nothing(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
        steps_on(host, domid)
        assert domain.logdirty_clean(Bitmap(domain.maximum_gpfn() + 1)) == 0
        domain.logdirty_off()


def test_log_dirty_mode_is_one_and_shows(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with (
        open_on_host(host.directory, domid) as domain,
        open_on_host(host.directory, domid) as other,
    ):
        dirty = Bitmap(domain.maximum_gpfn() + 1)
        domain.logdirty_enable()
        assert host.domains()[0].log_dirty
        with pytest.raises(OSError, match="on already") as caught:
            other.logdirty_enable()
        assert caught.value.errno == errno.EINVAL
        other.logdirty_off()
        assert not host.domains()[0].log_dirty
        with pytest.raises(OSError, match="is off"):
            domain.logdirty_clean(dirty)
        other.logdirty_off()
        domain.logdirty_enable()
        domain.logdirty_clean(dirty)
        domain.logdirty_off()


def test_log_dirty_of_a_process_that_died_can_be_turned_off(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
    assert host.domains()[0].log_dirty
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_off()
    assert not host.domains()[0].log_dirty


def test_the_device_models_log_dirty_shows_too(host: SimulatedHost) -> None:
    hvm = host.create_guest("hvm", 4 * MIB, "idle", type="hvm")
    pvh = host.create_guest("pvh", 4 * MIB, "idle", type="pvh")
    for domid in (hvm, pvh):
        host.switch_qemu_logdirty(domid, True)
    assert [row.log_dirty for row in host.domains()] == [True, False]
    host.switch_qemu_logdirty(hvm, False)
    assert not host.domains()[0].log_dirty


def test_views_come_in_the_order_asked_for_as_runs(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        pfns = pfns_of([5, 6, 7, 100, 3, 4])
        views = domain.foreign_map(pfns)
        assert [len(view) // PAGE for view in views] == [3, 1, 2]
        assert all(view.readonly for view in views)
        whole = read_pages(domain, populated(domain))
        wanted = b"".join(whole[p * PAGE : (p + 1) * PAGE] for p in pfns.tolist())
        assert b"".join(views) == wanted
        domain.foreign_unmap(views)


@pytest.mark.parametrize("pfn", [1028, (1 << 20) - 1, 1 << 40])
def test_a_pfn_without_a_page_cannot_be_mapped(host: SimulatedHost, pfn: int) -> None:
    domid = host.create_guest("g", 4 * MIB, "idle")
    with open_on_host(host.directory, domid) as domain:
        assert domain.maximum_gpfn() == 1027
        assert domain.get_pfn_type_batch(pfns_of([0, pfn])) == b"\0\xf0"
        with pytest.raises(OSError, match=hex(pfn)) as caught:
            domain.foreign_map(pfns_of([0, pfn]))
        assert caught.value.errno == errno.EINVAL


def test_a_new_domain_takes_pages_up_to_its_limit(host: SimulatedHost) -> None:
    config = {"c_info": {"type": "pvh"}, "b_info": {"max_memkb": 4096}}
    domid = host.create(config, "r")
    with open_on_host(host.directory, domid) as domain:
        info = domain.getinfo()
        assert (info.nr_pages, info.paused, info.shutdown_reason) == (0, True, None)
        high = pfns_of(range(0xFEFF8, 0xFF000))
        domain.populate_physmap_exact(high)
        domain.populate_physmap_exact(high[:2] + high[:2])
        assert domain.getinfo().nr_pages == 8
        assert domain.maximum_gpfn() == 0xFEFFF
        room = info.max_memkb // 4 - 8
        assert room == 1024 + 256 - 8
        with pytest.raises(OSError, match="past its limit") as caught:
            domain.populate_physmap_exact(pfns_of(range(room + 1)))
        assert caught.value.errno == errno.ENOMEM
        assert domain.getinfo().nr_pages == 8
        domain.populate_physmap_exact(pfns_of(range(room)))
        with pytest.raises(OSError, match="past the") as caught:
            domain.populate_physmap_exact(pfns_of([1 << 30]))
        assert caught.value.errno == errno.EINVAL


def test_a_page_can_be_cleared(host: SimulatedHost) -> None:
    domid = host.create({"c_info": {"type": "hvm"}, "b_info": {"max_memkb": 4096}}, "r")
    with open_on_host(host.directory, domid) as domain:
        domain.populate_physmap_exact(pfns_of([9]))
        write_pages(domain, pfns_of([9]), b"x" * PAGE)
        domain.clear_pages(9)
        assert read_pages(domain, pfns_of([9])) == bytes(PAGE)
        with pytest.raises(OSError, match="no page"):
            domain.clear_pages(10)


def crashed(host: SimulatedHost, domid: int) -> str:
    """Wait for the crash; returns its reason."""
    wait_for(lambda: host.report(domid).state is GuestState.CRASHED, "the guest crashes")
    report = host.report(domid)
    assert report.crash
    return report.crash


@pytest.mark.parametrize("workload", ["idle", "sequential", "random", "write-heavy"])
def test_one_wrong_octet_crashes_a_running_guest(host: SimulatedHost, workload: str) -> None:
    domid = host.create_guest("g", 2 * MIB, workload, rate=None if workload == "idle" else 500)
    with open_on_host(host.directory, domid) as domain:
        page = bytearray(read_pages(domain, pfns_of([300])))
        page[1234] ^= 0x10
        write_pages(domain, pfns_of([300]), bytes(page))
    reason = crashed(host, domid)
    assert "pfn 0x12c is wrong" in reason
    assert "foreign data in 1 of 512 words" in reason
    assert not host.report(domid).memory_ok


def test_a_crashed_guest_still_answers_though_who_watched_it_left_in_that_moment(
    host: SimulatedHost,
) -> None:
    domid = host.create_guest("g", 2 * MIB, "idle")
    host.pause(domid)
    (row,) = host.domains()
    assert row.pid is not None
    directory = os.open(host.directory / "domains" / str(domid), os.O_RDONLY)
    with (
        contextlib.closing(control.connect(directory, LIMIT)) as asker,
        contextlib.closing(control.connect(directory, LIMIT)) as watcher,
    ):
        os.close(directory)
        control.ask(asker, {"do": "pause"})
        control.send(watcher, {"do": "suspend"})
        for _ in range(2):  # it has heard the watcher by the end of the second round
            control.ask(asker, {"do": "pause"})
        with open_on_host(host.directory, domid) as domain:
            write_pages(domain, pfns_of([300]), b"x" * PAGE)
        os.kill(row.pid, signal.SIGSTOP)
        stat = Path(f"/proc/{row.pid}/stat")
        wait_for(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T", "it is stopped")
        control.send(asker, {"do": "verify"})
        watcher.close()
        os.kill(row.pid, signal.SIGCONT)
        control.receive(asker)
        assert "pfn 0x12c is wrong" in crashed(host, domid)
        control.ask(asker, {"do": "verify"})


def test_a_stale_page_crashes_the_restored_guest(host_factory: HostFactory) -> None:
    source, target = host_factory("a"), host_factory("b")
    domid = source.create_guest("g", 2 * MIB, "sequential", rate=20_000)
    with open_on_host(source.directory, domid) as domain:
        stale = read_pages(domain, pfns_of([77]))
        wait_for(lambda: read_pages(domain, pfns_of([77])) != stale, "the page is written")
    suspend(source, domid)
    new = clone(source, domid, target, "g")
    with open_on_host(target.directory, new) as domain:
        write_pages(domain, pfns_of([77]), stale)
    report = target.verify(new, 10)
    assert (report.state, report.memory_ok) == (GuestState.CRASHED, False)
    # How often it was written before the stale copy was taken is up to the guest.
    told = re.search(
        r"pfn 0x4d is wrong: expected write (\d+), found write (\d+) in 512", str(report.crash)
    )
    assert told is not None
    assert int(told[2]) < int(told[1])


def test_a_lost_page_crashes_the_restored_guest(host_factory: HostFactory) -> None:
    source, target = host_factory("a"), host_factory("b")
    domid = source.create_guest("g", 2 * MIB, "idle")
    suspend(source, domid)
    new = target.create(source.config(domid), "g")
    with (
        open_on_host(source.directory, domid) as old,
        open_on_host(target.directory, new) as domain,
    ):
        pfns = populated(old)
        pfns.remove(200)
        domain.populate_physmap_exact(pfns)
        write_pages(domain, pfns, read_pages(old, pfns))
    host = target
    with open_on_host(source.directory, domid) as old, open_on_host(host.directory, new) as domain:
        domain.hvm_setcontext(old.hvm_getcontext())
    host.restore_emulator(new, [], source.emulator_context(domid))
    host.unpause(new)
    assert "pfn 0xc8 is absent" in crashed(host, new)


def test_memory_given_back_is_gone_and_the_guest_runs_on(host: SimulatedHost) -> None:
    domid = host.create_guest("g", 4 * MIB, "random", rate=50_000)
    with open_on_host(host.directory, domid) as domain:
        domain.logdirty_enable()
        assert host.balloon(domid, 100) == 100
        gone = pfns_of(range(924, 1024))
        assert set(domain.get_pfn_type_batch(gone)) == {0xF0}
        assert domain.getinfo().nr_pages == 1028 - 100
        dirty = Bitmap(domain.maximum_gpfn() + 1)
        domain.logdirty_clean(dirty)
        assert all(dirty[924:1024])
        domain.logdirty_off()
    steps_on(host, domid)
    report = host.verify(domid, 10)
    assert (report.state, report.memory_ok) == (GuestState.RUNNING, True)
