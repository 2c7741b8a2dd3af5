"""Our paging of a real domain, on the stand-in for the hypercalls, with a guest that waits."""

from __future__ import annotations

import errno
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.helpers import guest
from tests.hypercalls.machine import (
    PARAM_PAGING_RING_PFN,
    SPECIAL_PFNS,
    Domain,
    Kind,
    Machine,
)
from tests.hypercalls.test_stand_in import ran

REPOSITORY: Final = Path(__file__).parents[2]
OUT: Final = range(0x100, 0x900)
"""The pages that are evicted: more than go at once."""


class PagerError(Exception):
    def __init__(self, errnoval: int, text: str) -> None:
        super().__init__(text)
        self.errno = errnoval


class Pager:
    """The process of tests.hypercalls.pager."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        assert process.stdout.readline() == "{}\n"

    def do(self, what: str, **arguments: Any) -> Any:
        return self.tell({"do": what, **arguments})

    def tell(self, what: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if "errno" in answer:
            raise PagerError(answer["errno"], answer["error"])
        return answer["result"]

    def leave(self) -> None:
        self.do("leave")
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self._process.wait(30) == 0


@pytest.fixture
def domain(machine: Machine) -> Domain:
    return guest(machine, 1, [range(0xA0), OUT])


@pytest.fixture
def off(release: Release, machine: Machine, domain: Domain) -> Iterator[Pager]:
    """A pager that has not turned paging on."""
    process = subprocess.Popen(
        [*release.python, "-m", "tests.hypercalls.pager", "1"],
        cwd=REPOSITORY,
        env={**release.environment, **machine.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        pager = Pager(process)
        yield pager
        pager.leave()
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def pager(off: Pager) -> Iterator[Pager]:
    """One that has, and turns it off in the end."""
    off.do("enable")
    yield off
    off.do("close")


def test_pages_go_and_come_back(pager: Pager, domain: Domain) -> None:
    had = domain.state.tot_pages
    pager.do("evict", pfns=list(OUT))
    state = domain.state
    assert (state.paged_pages, state.tot_pages) == (len(OUT), had - len(OUT))
    assert list(domain.pages(Kind.PAGED_OUT)) == list(OUT)
    assert state.claimed_pages == len(OUT)
    for first in range(OUT.start, OUT.stop, 128):
        pager.do("load", first=first, byte=1, pages=128)
    assert (state.paged_pages, state.tot_pages, state.claimed_pages) == (0, had, 0)
    assert [domain.page(pfn)[0] for pfn in OUT] == [1 + pfn % 128 for pfn in OUT]


def test_they_go_and_come_back_by_the_hundred(
    pager: Pager, machine: Machine, domain: Domain
) -> None:
    pager.do("evict", pfns=list(OUT))
    for first in range(OUT.start, OUT.stop, 128):
        pager.do("load", first=first, byte=1, pages=128)
    counts = machine.counts
    assert counts["XENMEM_paging_op_evict"] == counts["XENMEM_paging_op_prep"] == len(OUT)
    assert counts["multicall"] <= 2 * len(OUT) / 50


def test_the_guest_waits_for_its_page_and_for_no_other(pager: Pager, domain: Domain) -> None:
    pager.do("evict", pfns=list(OUT))
    assert not domain.access(0x123)
    assert pager.do("requests", count=1) == [[0x123, 0, False]]
    pager.do("load", first=0x124, byte=9, pages=100)
    assert domain.go_on(0) is None
    pager.do("load", first=0x122, byte=5, pages=2)
    assert domain.go_on() == 0
    assert domain.page(0x123) == b"\6" * 4096
    assert domain.access(0x123)


def test_vcpus_that_wait_for_the_same_page(pager: Pager, domain: Domain) -> None:
    pager.do("evict", pfns=list(OUT))
    for vcpu in range(3):
        assert not domain.access(0x123, vcpu)
    assert pager.do("requests", count=3) == [[0x123, vcpu, False] for vcpu in range(3)]
    pager.do("load", first=0x123, byte=9, pages=1)
    assert {domain.go_on() for _ in range(3)} == {0, 1, 2}


def test_a_page_that_was_loaded_before_it_was_asked_for(pager: Pager, domain: Domain) -> None:
    """The request was on its way: it is answered without the page."""
    pager.do("evict", pfns=list(OUT))
    assert not domain.access(0x123)
    pager.do("load", first=0x123, byte=9, pages=1)
    asked = pager.do("requests", count=1)
    assert domain.go_on(0) is None
    pager.do("resume", requests=asked)
    assert domain.go_on() == 0
    # A second answer would wake a vCPU that waits for another page.
    pager.do("resume", requests=asked)
    pager.do("load", first=0x123, byte=7, pages=1)
    assert domain.page(0x123) == b"\x09" * 4096


def test_more_vcpus_than_the_ring_has_places(pager: Pager, domain: Domain) -> None:
    pager.do("evict", pfns=list(OUT))
    for vcpu in range(12):
        assert not domain.access(0x200 + vcpu, vcpu)
    asked = pager.do("requests", count=8)
    assert [vcpu for _pfn, vcpu, _dropped in asked] == list(range(8))
    # The last first: what is answered is not what is oldest in the ring.
    for pfn in range(0x207, 0x1FF, -1):
        pager.do("load", first=pfn, byte=1, pages=1)
    assert {domain.go_on() for _ in range(8)} == set(range(8))
    assert len(pager.do("requests", count=4)) == 4
    pager.do("load", first=0x208, byte=1, pages=4)
    assert {domain.go_on() for _ in range(4)} == set(range(8, 12))


def test_pages_that_the_guest_gives_back(pager: Pager, domain: Domain) -> None:
    """More of them than the ring has places, none of which may stay taken."""
    pager.do("evict", pfns=list(OUT))
    for pfn in range(0x200, 0x220):
        domain.release(pfn)
        asked = pager.do("requests", count=1)
        assert asked == [[pfn, 0, True]]
        pager.do("resume", requests=asked)
    pager.do("load", first=0x1F0, byte=1, pages=0x40)
    assert domain.state.paged_pages == len(OUT) - 0x40
    assert not any(domain.kinds[0x200:0x220])
    assert not domain.access(0x300)
    assert pager.do("requests", count=1) == [[0x300, 0, False]]


def test_dom0_maps_pages_that_are_out(
    pager: Pager, domain: Domain, release: Release, machine: Machine
) -> None:
    """Again more than the ring has places: xenconsoled, say, or a device model."""
    pager.do("evict", pfns=list(OUT))
    found = []
    code = """
for pfn in range(0x200, 0x214):
    area, errors = mapped(pfn)
    assert errors == [0]
    print(ctypes.string_at(area, 1)[0], end=" ")
    memory.xenforeignmemory_unmap(fmem, c_void_p(area), c_ulong(1))
close()
"""
    other = threading.Thread(target=lambda: found.append(ran(code, release, machine)))
    other.start()
    for pfn in range(0x200, 0x214):
        (asked,) = pager.do("requests", count=1)
        assert asked == [pfn, 0, False]
        pager.do("load", first=pfn, byte=pfn & 0xFF, pages=1)
    other.join()
    assert found == [(" ".join(str(byte) for byte in range(0x14)), "")]
    # And a vCPU still finds a place.
    assert not domain.access(0x300)
    assert pager.do("requests", count=1) == [[0x300, 0, False]]


def test_a_page_that_somebody_has_mapped(pager: Pager, domain: Domain) -> None:
    pager.do("map", pfns=[0x234])
    with pytest.raises(PagerError, match="pfn 0x234 of domain 1 cannot be left behind") as raised:
        pager.do("evict", pfns=list(OUT))
    assert raised.value.errno == errno.EBUSY
    pager.do("unmap")
    pager.do("evict", pfns=[0x234])
    assert domain.state.paged_pages == len(OUT)


@pytest.mark.parametrize("name", ["XENMEM_paging_op_nominate", "XENMEM_paging_op_evict"])
def test_a_page_that_is_in_use_for_a_moment(
    pager: Pager, machine: Machine, domain: Domain, name: str
) -> None:
    machine.fail(name, errno.EBUSY, nth=0x123, times=2)
    pager.do("evict", pfns=list(OUT))
    assert domain.state.paged_pages == len(OUT)


def test_a_page_that_is_asked_for_while_it_goes(pager: Pager, domain: Domain) -> None:
    """Its vCPU waits, and the page goes all the same."""
    domain.set_kind([0x123], Kind.NOMINATED)
    assert not domain.access(0x123, writes=True)
    pager.do("evict", pfns=list(OUT))
    assert domain.state.paged_pages == len(OUT)
    assert pager.do("requests", count=1) == [[0x123, 0, False]]
    pager.do("load", first=0x123, byte=3, pages=1)
    assert domain.go_on() == 0
    assert domain.page(0x123) == b"\3" * 4096


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (errno.ENOSYS, "not built with memory paging"),
        (errno.EOPNOTSUPP, "dom0 is PVH"),
        (errno.ENODEV, "HAP"),
        (errno.EMLINK, "IOMMU"),
        (errno.EXDEV, "populated on demand"),
        (errno.EBUSY, "already has a pager"),
    ],
)
def test_a_domain_that_cannot_be_paged(
    off: Pager, machine: Machine, domain: Domain, refusal: int, reason: str
) -> None:
    had = domain.state.tot_pages
    machine.fail("XEN_VM_EVENT_ENABLE", refusal)
    with pytest.raises(PagerError, match=f"domain 1 cannot be paged.*{reason}") as raised:
        off.do("enable")
    assert raised.value.errno == refusal
    assert domain.state.tot_pages == had


CALLS: Final = (
    "xencall_open",
    "xencall_alloc_buffer_pages",
    "HVMOP_get_param",
    "XEN_DOMCTL_getpageframeinfo3",
    "XENMEM_populate_physmap",
    "xenforeignmemory_map",
    "XEN_VM_EVENT_ENABLE",
    "xenevtchn_open",
    "xenevtchn_bind_interdomain",
    "XENMEM_decrease_reservation",
)


@pytest.mark.parametrize("name", CALLS)
def test_what_was_begun_is_undone(off: Pager, machine: Machine, domain: Domain, name: str) -> None:
    had = domain.state.tot_pages
    machine.fail(name, errno.EPERM)
    with pytest.raises(PagerError):
        off.do("enable")
    assert (domain.state.tot_pages, domain.state.paging) == (had, 0)
    off.do("enable")
    off.do("close")


def test_before_the_guest_has_any_state(off: Pager, domain: Domain) -> None:
    """So that a receiver can find out before the first page comes."""
    domain.state.params[PARAM_PAGING_RING_PFN] = 0
    had = domain.state.tot_pages
    off.do("enable")
    off.do("close")
    assert PARAM_PAGING_RING_PFN not in domain.params
    assert domain.state.tot_pages == had


def test_a_ring_whose_page_came_with_the_guest(off: Pager, domain: Domain) -> None:
    """It may be among the pages that are left behind, too: it is not the guest's any more."""
    domain.set_kind([SPECIAL_PFNS])
    off.do("enable")
    off.do("evict", pfns=[*OUT, SPECIAL_PFNS])
    assert domain.kinds[SPECIAL_PFNS] == Kind.HOLE
    off.do("load", first=SPECIAL_PFNS, byte=1, pages=1)
    assert not domain.access(0x123)
    assert off.do("requests", count=1) == [[0x123, 0, False]]
    off.do("close")


def test_paging_again(off: Pager, domain: Domain) -> None:
    for _ in range(2):
        off.do("enable")
        off.do("evict", pfns=list(OUT))
        off.do("load", first=OUT.start, byte=1, pages=len(OUT))
        off.do("close")
    assert domain.state.paged_pages == domain.state.claimed_pages == 0


def test_a_vcpu_that_asked_last_goes_on_when_paging_ends(off: Pager, domain: Domain) -> None:
    """Twelve that did: some are not in the ring yet, which keeps Xen from turning paging off."""
    off.do("enable")
    off.do("evict", pfns=list(OUT))
    for vcpu in range(12):
        assert not domain.access(0x200 + vcpu, vcpu)
    off.do("load", first=OUT.start, byte=1, pages=len(OUT))
    off.do("close")
    assert {domain.go_on() for _ in range(12)} == set(range(12))
    assert not domain.state.paging


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize(
    "then",
    [
        {"do": "evict", "pfns": list(OUT)[0x400:]},
        {"do": "load", "first": 0x123, "byte": 1, "pages": 1},
    ],
    ids=["evict", "load"],
)
def test_a_domain_that_is_destroyed(
    pager: Pager, domain: Domain, then: dict[str, Any], *, gone: bool
) -> None:
    pager.do("evict", pfns=list(OUT)[:0x400])
    assert not domain.access(0x123)
    assert pager.do("requests", count=1)
    domain.destroy(gone=gone)
    with pytest.raises(PagerError) as raised:
        pager.tell(then)
    assert raised.value.errno == errno.ESRCH


def test_no_memory_for_a_page(pager: Pager, domain: Domain) -> None:
    pager.do("evict", pfns=list(OUT))
    domain.state.max_pages = domain.state.tot_pages
    with pytest.raises(PagerError) as raised:
        pager.do("load", first=OUT.start, byte=1, pages=1)
    assert raised.value.errno == errno.ENOMEM


def test_no_claim_no_eviction(pager: Pager, machine: Machine) -> None:
    machine.fail("XENMEM_claim_pages", errno.ENOMEM, nth=2)
    with pytest.raises(PagerError) as raised:
        pager.do("evict", pfns=list(OUT))
    assert raised.value.errno == errno.ENOMEM


def test_pages_that_are_loaded_while_dirty_pages_are_logged(pager: Pager, domain: Domain) -> None:
    """Whoever logs them has seen holes in their places."""
    pager.do("evict", pfns=list(range(0x100, 0x120)))
    pager.do("load", first=0x100, byte=1, pages=16)
    domain.state.log_dirty = 1
    pager.do("load", first=0x110, byte=1, pages=16)
    domain.state.log_dirty = 0
    assert list(np.flatnonzero(domain.dirty)) == [*range(0x110, 0x120)]


@pytest.mark.parametrize("memory", [True, False])
def test_the_highest_page_is_loaded_while_dirty_pages_are_logged(
    pager: Pager, machine: Machine, domain: Domain, *, memory: bool
) -> None:
    """Xen marks it only once there has been a higher one."""
    highest = SPECIAL_PFNS + 8
    domain.set_kind([highest])
    pager.do("evict", pfns=[highest])
    domain.state.log_dirty = 1
    if not memory:
        machine.fail("XENMEM_populate_physmap", errno.ENOMEM)
    pager.do("load", first=highest, byte=1, pages=1)
    domain.state.log_dirty = 0
    assert domain.page(highest) == b"\1" * 4096
    assert bool(domain.dirty[highest]) is memory
    assert domain.kinds[highest + 1] == Kind.HOLE


def test_half_a_page(pager: Pager) -> None:
    with pytest.raises(PagerError, match="not whole pages"):
        pager.do("load_bytes", first=OUT.start, size=100)
