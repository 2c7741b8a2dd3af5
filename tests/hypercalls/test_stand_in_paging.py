"""The stand-in's memory paging, with a pager that is made of libxenctrl's own functions."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.helpers import guest
from tests.hypercalls.machine import Domain, Kind, Machine
from tests.hypercalls.test_stand_in import SETUP, ran

PAGER = """
import select, struct
from ctypes import c_char
events = ctypes.CDLL("libxenevtchn.so.1", use_errno=True)
events.xenevtchn_open.restype = c_void_p
RING = 0xFEFF8
xce = c_void_p(events.xenevtchn_open(None, 0))
port = c_uint32()

def enable():
    pfn = (c_ulong * 1)(RING)
    assert not xc.xc_domain_populate_physmap_exact(xch, 1, c_ulong(1), 0, 0, pfn)
    area, errors = mapped(RING)
    assert errors == [0]
    # Which is the pager's to initialise.
    ctypes.memmove(area, struct.pack("4I48x", 0, 1, 0, 1), 64)
    ctypes.set_errno(0)
    result = xc.xc_mem_paging_enable(xch, 1, byref(port)), ctypes.get_errno()
    assert not xc.xc_domain_decrease_reservation_exact(xch, 1, c_ulong(1), 0, pfn)
    global local
    local = events.xenevtchn_bind_interdomain(xce, 1, port)
    return area, result

def out(*pfns):
    both = xc.xc_mem_paging_nominate, xc.xc_mem_paging_evict
    return [tuple(call(xch, 1, c_ulong(pfn)) for call in both) for pfn in pfns]

def load(pfn, byte):
    page = ctypes.create_string_buffer(bytes([byte]) * 4096, 4096)
    return xc.xc_mem_paging_load(xch, 1, c_ulong(pfn), page)

def requests(ring, at, n):
    # Wait for n requests from number `at` on; return vCPU, flags, pfn and paging flags of each.
    while struct.unpack("I", ctypes.string_at(ring, 4))[0] < at + n:
        select.select([events.xenevtchn_fd(xce)], [], [])
        assert events.xenevtchn_pending(xce) == local
        events.xenevtchn_unmask(xce, local)
    found = []
    for number in range(at, at + n):
        entry = ctypes.string_at(ring + 64 + 400 * (number % 8), 40)
        version, flags, reason, vcpu = struct.unpack_from("4I", entry)
        assert (version, reason) == (7, 3), (version, reason)
        found.append((vcpu, flags, *struct.unpack_from("Q4xI", entry, 24)))
    return found

def respond(ring, at, vcpu, flags, version=7):
    entry = struct.pack("4I", version, flags, 3, vcpu)
    ctypes.memmove(ring + 64 + 400 * (at % 8), entry, len(entry))
    ctypes.memmove(ring + 8, struct.pack("I", at + 1), 4)
    events.xenevtchn_notify(xce, local)

def leave(ring):
    assert not xc.xc_mem_paging_disable(xch, 1), ctypes.get_errno()
    memory.xenforeignmemory_unmap(fmem, c_void_p(ring), c_ulong(1))
    events.xenevtchn_close(xce)
    close()
"""


@pytest.fixture
def complained(tmp_path: Path, release: Release) -> Machine:
    """A machine that may be left in any state."""
    directory = tmp_path / "other"
    directory.mkdir()
    return Machine(directory, release.version, library=release.library)


@pytest.fixture
def domain(complained: Machine) -> Domain:
    return guest(complained, 1, [range(0x10, 0x80)])


class Pager:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def go_on(self) -> None:
        """Answer its `input()`."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()


@contextmanager
def pager(code: str, release: Release, machine: Machine) -> Iterator[Pager]:
    """Run this code after PAGER, beside a guest that the test plays."""
    process = subprocess.Popen(
        [*release.python, "-u", "-c", SETUP % release.version + PAGER + code],
        env={**release.environment, **machine.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Pager(process)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_guest_waits_for_its_page(release: Release, complained: Machine, domain: Domain) -> None:
    """What it asks for, what has to be said to it, and which pages are whose."""
    had = domain.state.tot_pages
    code = """
ring, enabled = enable()
print(enabled, out(0x20, 0x21, 0x22, 0x20))
print(requests(ring, 0, 2))
print(load(0x20, 7), load(0x22, 9), load(0x22, 9), ctypes.get_errno())
respond(ring, 0, 0, 1)
respond(ring, 1, 0, 0)
leave(ring)
"""
    with pager(code, release, complained) as running:
        assert running.says() == "(0, 0) [(0, 0), (0, 0), (0, 0), (-1, -1)]"
        assert domain.state.paged_pages == 3
        assert domain.state.tot_pages == had - 3
        assert not any(domain.page(0x20))
        assert domain.access(0x23)
        assert not domain.access(0x20)
        domain.release(0x21)
        assert running.says() == "[(0, 1, 32, 0), (0, 0, 33, 1)]"
        assert running.says() == f"0 0 -1 {errno.ENOENT}"
        assert domain.go_on() == 0
        assert domain.access(0x20)
        assert domain.page(0x20) == b"\7" * 4096
        with pytest.raises(OSError, match="pfn 0x21"):
            domain.access(0x21)
    assert (domain.state.tot_pages, domain.state.paged_pages) == (had - 1, 0)
    assert complained.complaints() == []


def test_paging_goes_on_once(release: Release, complained: Machine, domain: Domain) -> None:
    code = """
ring, enabled = enable()
print(xc.xc_mem_paging_enable(xch, 1, byref(port)), ctypes.get_errno())
leave(ring)
print(xc.xc_mem_paging_nominate(xch, 1, c_ulong(0x20)), ctypes.get_errno())
"""
    said = ran(PAGER + code.replace("leave(ring)", ""), release, complained)
    assert said == (f"-1 {errno.EBUSY}\n0 {errno.EBUSY}", "")
    found = complained.complaints()
    assert "domain 1 has a paging ring" in found
    assert "1 mappings of guests' memory were left" in found


@pytest.mark.parametrize(
    "refusal", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENODEV, errno.EMLINK, errno.EXDEV]
)
def test_paging_is_refused(
    release: Release, complained: Machine, domain: Domain, refusal: int
) -> None:
    complained.fail("XEN_VM_EVENT_ENABLE", refusal)
    code = "print(xc.xc_mem_paging_enable(xch, 1, byref(port)), ctypes.get_errno())"
    assert ran(PAGER + code, release, complained) == (f"-1 {refusal}", "")


def test_a_page_that_is_mapped_stays(release: Release, complained: Machine, domain: Domain) -> None:
    code = """
ring, enabled = enable()
area, errors = mapped(0x20)
print(out(0x20, 0x21), ctypes.get_errno())
memory.xenforeignmemory_unmap(fmem, c_void_p(area), c_ulong(1))
print(out(0x20), load(0x20, 1), load(0x21, 1))
leave(ring)
"""
    assert ran(PAGER + code, release, complained) == (
        f"[(-1, -1), (0, 0)] {errno.EBUSY}\n[(0, 0)] 0 0",
        "",
    )


def test_dom0_waits_for_a_page_that_it_maps(
    release: Release, complained: Machine, domain: Domain
) -> None:
    """And asks for it once, as nobody's vCPU."""
    code = """
ring, enabled = enable()
print(out(0x20))
print(requests(ring, 0, 1), load(0x20, 7))
leave(ring)
"""
    with pager(code, release, complained) as running:
        assert running.says() == "[(0, 0)]"
        mapping = "area, errors = mapped(0x20)\nprint(errors, ctypes.string_at(area, 1))"
        assert ran(mapping, release, complained) == ("[0] b'\\x07'", "")
        assert running.says() == "[(0, 2, 32, 0)] 0"


def test_a_vcpu_waits_for_a_place_in_the_ring(
    release: Release, complained: Machine, domain: Domain
) -> None:
    """Each request keeps its place until it is answered: eight vCPUs' are in it, a ninth's not."""
    code = """
ring, enabled = enable()
print(len(out(*range(0x20, 0x29))))
asked = requests(ring, 0, 8)
input()
print([vcpu for vcpu, *_ in asked], struct.unpack("I", ctypes.string_at(ring, 4))[0])
print(xc.xc_mem_paging_disable(xch, 1), ctypes.get_errno())
print(load(0x20, 1))
respond(ring, 0, 0, 1)
print(requests(ring, 8, 1))
for number in range(1, 9):
    load(0x20 + number, 1)
    respond(ring, number, number, 1)
leave(ring)
"""
    with pager(code, release, complained) as running:
        assert running.says() == "9"
        assert not any(domain.access(0x20 + vcpu, vcpu) for vcpu in range(9))
        running.go_on()
        assert running.says() == f"{list(range(8))} 8"
        assert running.says() == f"-1 {errno.EBUSY}"
        assert running.says() == "0"
        assert running.says() == "[(8, 1, 40, 0)]"
        assert sorted(str(domain.go_on()) for _ in range(9)) == [str(vcpu) for vcpu in range(9)]


@pytest.mark.parametrize(
    ("respond", "complaint"),
    [
        ("respond(ring, 0, 0, 1, version=0)", "asked for a response of version 0"),
        (
            "respond(ring, 0, 3, 1)",
            "asked for a response for vCPU 3, which waits for none",
        ),
    ],
)
def test_a_wrong_response_wakes_nobody_and_is_complained_about(
    release: Release, complained: Machine, domain: Domain, respond: str, complaint: str
) -> None:
    code = f"""
ring, enabled = enable()
print(out(0x20))
requests(ring, 0, 1)
load(0x20, 1)
{respond}
leave(ring)
"""
    with pager(code, release, complained) as running:
        assert running.says() == "[(0, 0)]"
        assert not domain.access(0x20)
    assert domain.go_on(0) is None
    assert complained.complaints() == [complaint]


def test_without_a_pager_a_guest_dies_of_a_page_that_is_out(
    complained: Machine, domain: Domain
) -> None:
    domain.set_kind([0x20], Kind.PAGED_OUT)
    with pytest.raises(OSError, match="pfn 0x20") as raised:
        domain.access(0x20)
    assert raised.value.errno == errno.EFAULT


def test_a_domain_that_is_destroyed_is_paged_no_more(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
ring, enabled = enable()
print(out(0x20))
input()
print(load(0x20, 1), ctypes.get_errno(), xc.xc_mem_paging_disable(xch, 1))
memory.xenforeignmemory_unmap(fmem, c_void_p(ring), c_ulong(1))
events.xenevtchn_close(xce)
close()
"""
    with pager(code, release, complained) as running:
        assert running.says() == "[(0, 0)]"
        domain.destroy()
        running.go_on()
        assert running.says() == f"-1 {errno.ESRCH} 0"
