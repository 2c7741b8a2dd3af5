"""What the stand-in complains about."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.helpers import guest, save
from tests.hypercalls.machine import Domain, Kind, Machine
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy

SETUP = """
import ctypes, mmap, os, signal, sys
from ctypes import POINTER, byref, c_int, c_uint32, c_ulong, c_ulonglong, c_void_p
xc = ctypes.CDLL("libxenctrl.so.%s", use_errno=True)
call = ctypes.CDLL("libxencall.so.1", use_errno=True)
memory = ctypes.CDLL("libxenforeignmemory.so.1", use_errno=True)
for opened in xc.xc_interface_open, call.xencall_open, memory.xenforeignmemory_open:
    opened.restype = c_void_p
memory.xenforeignmemory_map.restype = c_void_p
call.xencall_alloc_buffer.restype = c_void_p
fmem = c_void_p(memory.xenforeignmemory_open(None, 0))
xcall = c_void_p(call.xencall_open(None, 0))
xch = c_void_p(xc.xc_interface_open(None, None, 0))

def mapped(*pfns):
    errors = (c_int * len(pfns))()
    wanted = (c_ulong * len(pfns))(*pfns)
    area = memory.xenforeignmemory_map(
        fmem, 1, mmap.PROT_READ | mmap.PROT_WRITE, c_ulong(len(pfns)), wanted, errors
    )
    return area, list(errors)

def close():
    xc.xc_interface_close(xch)
    call.xencall_close(xcall)
    memory.xenforeignmemory_close(fmem)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "other"
    directory.mkdir()
    return directory


@pytest.fixture
def complained(directory: Path, release: Release) -> Machine:
    """A machine that may be left in any state."""
    return Machine(directory, release.version, library=release.library)


@pytest.fixture
def domain(complained: Machine) -> Domain:
    return guest(complained, 1, [range(0x10, 0x80)])


def ran(code: str, release: Release, machine: Machine) -> tuple[str, str]:
    """Run this code after SETUP; return its standard output and error."""
    done = subprocess.run(
        [*release.python, "-c", SETUP % release.version + code],
        env={**release.environment, **machine.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return done.stdout.strip(), done.stderr.strip()


def test_pages_are_mapped_in_the_order_asked_for(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
area, errors = mapped(0x20, 0x21, 0x75, 0x10)
for place, pfn in enumerate((0x20, 0x21, 0x75, 0x10)):
    ctypes.memset(area + 4096 * place, pfn, 4096)
print(errors, memory.xenforeignmemory_unmap(fmem, c_void_p(area), c_ulong(4)))
close()
"""
    assert ran(code, release, complained) == ("[0, 0, 0, 0] 0", "")
    assert [domain.page(pfn) for pfn in (0x20, 0x21, 0x75, 0x10)] == [
        bytes([pfn]) * 4096 for pfn in (0x20, 0x21, 0x75, 0x10)
    ]
    assert complained.complaints() == []


def test_a_page_with_an_error_is_a_fault_and_no_child_inherits_a_mapping(
    release: Release, complained: Machine, domain: Domain
) -> None:
    domain.set_kind([0x20], Kind.PAGED_OUT)
    domain.set_kind([0x21], Kind.UNMAPPABLE)
    code = """
area, errors = mapped(0x10, 0x20, 0x21, 0xFFFFF)
print(errors)
child = os.fork()
if not child:
    ctypes.string_at(area, 1)
print(signal.Signals(os.waitpid(child, 0)[1] & 127).name)
sent = os.pipe()[1]
libc = ctypes.CDLL(None, use_errno=True)
print(libc.write(sent, c_void_p(area + 4096), 1), ctypes.get_errno())
memory.xenforeignmemory_unmap(fmem, c_void_p(area), c_ulong(4))
close()
"""
    said = "[0, -2, -14, -22]\nSIGSEGV\n-1 14"
    assert ran(code, release, complained) == (said, "")


def test_a_mapping_that_is_left_is_complained_about(
    release: Release, complained: Machine, domain: Domain
) -> None:
    ran("mapped(0x10, 0x30)\nclose()", release, complained)
    assert complained.complaints() == ["2 mappings of guests' memory were left"]


def test_copied_pages_are_a_mapping(release: Release, complained: Machine, domain: Domain) -> None:
    complained.state.copies = True
    code = """
memory.xenforeignmemory_map.argtypes = [c_void_p, c_uint32, c_int, c_ulong, c_void_p, c_void_p]
def copied(last):
    pfns = (c_ulong * 9)(*range(0x10, 0x20, 2), last)
    errors = (c_int * 9)()
    area = memory.xenforeignmemory_map(fmem, 1, mmap.PROT_READ, 9, pfns, errors)
    held = [ctypes.string_at(area + 4096 * place, 4096) for place in range(8)]
    print(area is not None, list(errors), held == [bytes([pfn]) * 4096 for pfn in pfns[:8]])
    return c_void_p(area)
area, errors = mapped(*range(0x10, 0x20))
for place, pfn in enumerate(range(0x10, 0x20)):
    ctypes.memset(area + 4096 * place, pfn, 4096)
memory.xenforeignmemory_unmap(fmem, c_void_p(area), c_ulong(16))
for last in 0x90, 0x20, 0x20, 0x90:
    memory.xenforeignmemory_unmap(fmem, copied(last), c_ulong(9))
copied(0x20)
close()
"""
    whole, holed = f"True {[0] * 9} True", f"True {[*[0] * 8, -22]} True"
    assert ran(code, release, complained) == ("\n".join([holed, whole, whole, holed, whole]), "")
    assert complained.complaints() == ["1 mappings of guests' memory were left"]


def test_handles_and_buffers_that_are_left_are_complained_about(
    release: Release, complained: Machine
) -> None:
    ran("call.xencall_alloc_buffer(xcall, 100)", release, complained)
    # xencall, two of foreign memory, xencall of libxenctrl's, a device model's
    assert complained.complaints() == [
        "1 hypercall buffers are still held",
        "5 handles are still open",
    ]


def test_log_dirty_mode_that_is_left_on_is_complained_about(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = "print(xc.xc_shadow_control(xch, 1, 2, None, 0))\nclose()"
    assert ran(code, release, complained) == ("0", "")
    assert complained.complaints() == ["domain 1 is in log-dirty mode"]


def test_a_guest_that_keeps_writing_has_the_same_pages_dirty_after_each_round(
    release: Release, complained: Machine, domain: Domain, tmp_path: Path
) -> None:
    domain.keep_writing(10)
    told = []

    def policy(stats: dict[str, int]) -> int:
        if stats["dirty_count"] >= 0:
            told.append(stats["dirty_count"])
        stop = stats["iteration"] == 3
        return PrecopyPolicy.STOP_AND_COPY if stop else PrecopyPolicy.CONTINUE_PRECOPY

    done = save(tmp_path / "stream", domain, complained, release, Engine.OWN, policy=policy)
    assert done.result == (0, 0), done.logged
    assert told == [told[0]] * 3
    assert 1 / 20 < told[0] / len(domain.pages()) < 1 / 5


def test_an_unknown_hypercall_is_reported_by_number(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = "print(xc.xc_domain_destroy(xch, 1), ctypes.get_errno())\nclose()"
    said = "hypercalls: domctl 2 is unknown here: ENOSYS"
    assert ran(code, release, complained) == ("-1 38", said)
    assert complained.complaints() == ["asked for domctl 2"]


def test_memory_outside_a_hypercall_buffer_faults(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
domctl = ctypes.create_string_buffer(256)
print(call.xencall1(xcall, 36, domctl), ctypes.get_errno())
close()
"""
    said, complaint = ran(code, release, complained)
    assert said == "-1 14"
    assert "is not in a hypercall buffer: EFAULT" in complaint


def test_a_populate_of_2_mib_is_counted_as_one(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
pfns = (c_ulong * 2)(0x400, 0x800)
print(xc.xc_domain_populate_physmap_exact(xch, 1, c_ulong(2), 9, 0, pfns))
close()
"""
    had = len(domain.pages())
    assert ran(code, release, complained) == ("0", "")
    assert domain.populated == {9: 2}
    assert len(domain.pages()) - had == domain.state.tot_pages - had == 1024
    assert domain.page(0x5FF) == b"\xdb" * 4096


def test_more_types_than_1024_are_too_many(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
for n in 1024, 1025:
    pfns = (c_ulong * n)(*range(n))
    ctypes.set_errno(0)
    print(xc.xc_get_pfn_type_batch(xch, 1, n, pfns), ctypes.get_errno())
close()
"""
    assert ran(code, release, complained) == ("0 0\n-1 7", "")


def test_an_unknown_domain(release: Release, complained: Machine, domain: Domain) -> None:
    code = """
pfns = (c_ulong * 1)(0x400)
get = xc.xc_hvm_param_get
for call_ in (
    lambda: xc.xc_domain_populate_physmap_exact(xch, 7, c_ulong(1), 0, 0, pfns),
    lambda: xc.xc_domain_maximum_gpfn(xch, 7, pfns),
    lambda: xc.xc_get_pfn_type_batch(xch, 7, 1, pfns),
    lambda: get(xch, 7, 1, pfns),
):
    print(call_(), errno.errorcode[ctypes.get_errno()])
close()
"""
    said = "-1 EBUSY\n-1 ESRCH\n-1 ESRCH\n-1 ESRCH"
    assert ran("import errno\n" + code, release, complained) == (said, "")


def test_hvm_parameters_that_are_set_once_or_deprecated(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
value = c_ulonglong()
for index, number in (9, 5), (9, 5), (9, 6), (1, 5), (1, 6), (4, 1), (200, 1):
    ctypes.set_errno(0)
    print(xc.xc_hvm_param_set(xch, 1, index, c_ulonglong(number)), ctypes.get_errno())
print(xc.xc_hvm_param_get(xch, 1, 9, byref(value)), value.value)
close()
"""
    said = ["0 0", "0 0", "-1 17", "0 0", "0 0", "-1 22", "-1 22", "0 5"]
    assert ran(code, release, complained) == ("\n".join(said), "")


def test_pages_are_claimed_and_given_back(
    release: Release, complained: Machine, domain: Domain
) -> None:
    code = """
pfns = (c_ulong * 2)(0x20, 0x30)
print(xc.xc_domain_claim_pages(xch, 1, c_ulong(500)))
print(xc.xc_domain_claim_pages(xch, 1, c_ulong(600)), ctypes.get_errno())
print(xc.xc_domain_decrease_reservation_exact(xch, 1, c_ulong(2), 0, pfns))
print(xc.xc_domain_decrease_reservation_exact(xch, 1, c_ulong(2), 0, pfns))
close()
"""
    had = domain.state.tot_pages
    assert ran(code, release, complained) == ("0\n-1 22\n0\n-1", "")
    # A claim is of a total, and grows with what is given back.
    assert domain.state.claimed_pages == 500 - (had - 2)
    assert domain.state.tot_pages == had - 2
    assert domain.kinds[0x20] == domain.kinds[0x30] == Kind.HOLE
    assert not any(domain.page(0x20))
