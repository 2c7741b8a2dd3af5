"""Debian's libxenguest, unmodified, saves and restores on the stand-in."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from tests.hypercalls.build import Release
from tests.hypercalls.helpers import Done, guest, restore, save
from tests.hypercalls.machine import (
    PAGE,
    PARAM_CONSOLE_PFN,
    PARAM_STORE_PFN,
    SPECIAL_PFNS,
    Domain,
    Kind,
    Machine,
)
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.toolstack.inspect.walk import inspect

RAM: Final = (range(0xA0), range(0x100, 0x900), range(0x1000, 0x1403))
"""With holes in between, and runs longer than one of libxc's batches of 1,024."""

ROUNDS: Final = 3


@pytest.fixture
def source(machine: Machine) -> Domain:
    return guest(machine, 1, RAM)


@pytest.fixture
def destination(machine: Machine) -> Domain:
    return machine.domain(2)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "stream"
    yield path
    path.unlink(missing_ok=True)


def assert_same(source: Domain, destination: Domain) -> None:
    """Memory whole, but for the rings, which a restore clears."""
    rings = [source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]]
    assert source.differences(destination) == rings
    assert [destination.page(ring) for ring in rings] == [bytes(PAGE)] * 2
    assert destination.context == source.context
    assert destination.tsc == source.tsc
    assert destination.policy == source.policy


def records(stream: Path) -> list[str]:
    with stream.open("rb") as file:
        return [entry.name for entry in inspect(file)]


def saved_live(stream: Path, source: Domain, machine: Machine, release: Release) -> Done:
    """With two rounds after the first, in which the guest writes to pages of its own."""

    def policy(stats: dict[str, Any]) -> int:
        if stats["dirty_count"] == -1 and stats["iteration"] < ROUNDS:
            source.fill(range(0x200, 0x200 + 300 * stats["iteration"], 3), stats["iteration"])
        decided = stats["iteration"] >= ROUNDS
        return PrecopyPolicy.STOP_AND_COPY if decided else PrecopyPolicy.CONTINUE_PRECOPY

    return save(stream, source, machine, release, policy=policy)


def test_a_suspended_guest(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    done = save(stream, source, machine, release)
    assert done.result == (0, 0), done.logged
    asked = ["switch_qemu_logdirty", "suspend", "switch_qemu_logdirty"]
    assert [name for name, _fields in done.said] == asked
    assert records(stream)[-4:] == ["X86_TSC_INFO", "HVM_CONTEXT", "HVM_PARAMS", "END"]
    assert "XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY" not in machine.counts

    done = restore(stream, destination, machine, release)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    assert destination.populated == {0: len(source.pages())}
    assert destination.state.repopulated == 0
    rings = source.params[PARAM_CONSOLE_PFN], source.params[PARAM_STORE_PFN]
    grants = [struct.unpack_from("<HHI", destination.grants, 8 * entry) for entry in (0, 1)]
    assert grants == [(1, 0, ring) for ring in rings]


def test_a_running_guest(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    done = saved_live(stream, source, machine, release)
    assert done.result == (0, 0), done.logged
    told = [fields["dirty_count"] for name, fields in done.said if name == "precopy_policy"]
    assert told == [SPECIAL_PFNS + 8, -1, 100, -1, 200, -1]
    assert machine.counts["XEN_DOMCTL_SHADOW_OP_CLEAN"] == ROUNDS

    done = restore(stream, destination, machine, release)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    assert destination.populated == {0: len(source.pages())}


def test_a_running_guest_whose_scattered_pages_are_copied(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    machine.state.copies = True
    assert saved_live(stream, source, machine, release).result == (0, 0)
    assert restore(stream, destination, machine, release).result == (0, 0)
    assert_same(source, destination)


def test_what_is_no_ram_travels_as_its_type_and_is_not_populated(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    source.set_kind(range(0x300, 0x303), Kind.PAGED_OUT)
    source.set_kind([0x310], Kind.BROKEN)
    assert save(stream, source, machine, release).result == (0, 0)
    assert restore(stream, destination, machine, release).result == (0, 0)
    assert_same(source, destination)
    with stream.open("rb") as file:
        told = [entry.summary["types"] for entry in inspect(file) if "types" in entry.summary]
    assert sum(types.get("BROKEN", 0) for types in told) == 1
    assert sum(types["NOTAB"] for types in told if "NOTAB" in types) == len(source.pages())
    assert not np.any(destination.kinds[[*range(0x300, 0x303), 0x310, SPECIAL_PFNS + 7]])


def test_a_page_that_cannot_be_mapped(
    release: Release, machine: Machine, source: Domain, stream: Path
) -> None:
    source.set_kind([0x345], Kind.UNMAPPABLE)
    done = save(stream, source, machine, release)
    assert done.retval == -1
    assert any("Mapping of pfn 0x345 (mfn 0x345) failed -14" in line for line in done.logged)


def test_a_guest_for_which_there_is_no_memory(
    release: Release, machine: Machine, source: Domain, stream: Path
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    small = machine.domain(2, max_pages=0x800)
    assert restore(stream, small, machine, release).result == (-1, errno.EBUSY)
    assert len(small.pages()) == 0x800


def test_a_domain_that_has_run_keeps_its_cpu_policy(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    destination.resume()
    assert restore(stream, destination, machine, release).result == (-1, errno.EEXIST)


def test_a_short_populate_is_busy(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    machine.fail("XENMEM_populate_physmap", short_by=1, nth=2)
    assert restore(stream, destination, machine, release).result == (-1, errno.EBUSY)


def test_a_short_bitmap_ends_a_save(
    release: Release, machine: Machine, source: Domain, stream: Path
) -> None:
    machine.fail("XEN_DOMCTL_SHADOW_OP_CLEAN", short_by=1)
    assert saved_live(stream, source, machine, release).retval == -1


BY_A_SAVE: Final = {
    "xencall_open": 1,
    "xenforeignmemory_open": 1,
    "xendevicemodel_open": 1,
    "xencall_alloc_buffer": 1,
    "xencall_alloc_buffer_pages": 1,
    "XEN_SYSCTL_getdomaininfolist": 1,
    "XEN_DOMCTL_getdomaininfo": 1,
    "XENMEM_maximum_gpfn": 1,
    "XENVER_version": 1,
    "XEN_SYSCTL_get_cpu_policy": 1,
    "XEN_DOMCTL_get_cpu_policy": 1,
    "XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY": 2,
    "XEN_DOMCTL_getpageframeinfo3": 1,
    "xenforeignmemory_map": 1,
    "XEN_DOMCTL_SHADOW_OP_CLEAN": 1,
    "XEN_DOMCTL_gettscinfo": 1,
    "XEN_DOMCTL_gethvmcontext": 1,
    "HVMOP_get_param": 1,
    "XEN_DOMCTL_SHADOW_OP_OFF": 1,
}
"""What a live save asks for, and how often it must fail: libxenguest tries log-dirty twice."""

BY_A_RESTORE: Final = (
    "xencall_open",
    "xenforeignmemory_open",
    "xendevicemodel_open",
    "XEN_DOMCTL_getdomaininfo",
    "XENMEM_maximum_gpfn",
    "xenforeignmemory_map",
    "XEN_DOMCTL_set_cpu_policy",
    "XENMEM_populate_physmap",
    "XEN_DOMCTL_settscinfo",
    "HVMOP_set_param",
    "XEN_DOMCTL_sethvmcontext",
    "xenforeignmemory_map_resource",
)
OF_OUR_CHECK: Final = {"XEN_SYSCTL_get_cpu_policy", "xencall_alloc_buffer"}
"""What else a restore asks for: the host's CPU policy, without which it goes on."""


def test_no_call_is_missing_from_these_tests(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    assert saved_live(stream, source, machine, release).result == (0, 0)
    by_save = machine.counts
    assert set(by_save) == set(BY_A_SAVE)
    assert restore(stream, destination, machine, release).result == (0, 0)
    by_restore = {name for name, count in machine.counts.items() if count > by_save.get(name, 0)}
    assert by_restore == {*BY_A_RESTORE, *OF_OUR_CHECK}


@pytest.mark.parametrize("name", BY_A_SAVE)
def test_a_call_of_a_save_fails(
    release: Release, machine: Machine, source: Domain, stream: Path, name: str
) -> None:
    machine.fail(name, errno.EXDEV, times=BY_A_SAVE[name])
    done = saved_live(stream, source, machine, release)
    if name == "XEN_DOMCTL_SHADOW_OP_OFF":
        # libxenguest does not look.
        assert done.result == (0, 0)
        assert machine.complaints() == ["domain 1 is in log-dirty mode"]
        source.state.log_dirty = 0
    elif name == "xencall_alloc_buffer_pages":
        assert done.result == (-1, errno.ENOMEM)
    else:
        assert done.result == (-1, errno.EXDEV)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved") / "stream"


@pytest.mark.parametrize("name", BY_A_RESTORE)
def test_a_call_of_a_restore_fails(
    release: Release, machine: Machine, destination: Domain, saved: Path, name: str
) -> None:
    if not saved.exists():
        assert save(saved, guest(machine, 1, RAM), machine, release).result == (0, 0)
    machine.fail(name, errno.EXDEV)
    assert restore(saved, destination, machine, release).result == (-1, errno.EXDEV)
