"""Our own engine and Debian's unmodified libxenguest save and restore on the stand-in, and restore
what the other has saved."""

from __future__ import annotations

import errno
import hashlib
import importlib
import struct
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from numpy.typing import NDArray

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
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.toolstack.inspect.walk import inspect

RAM: Final = (range(0xA0), range(0x100, 0x900), range(0x1000, 0x1403))
"""Runs of pages with holes in between, some longer than libxc's batches of 1,024."""

ROUNDS: Final = 3

SUPERPAGE: Final = 512

ROOM_FOR_LISTS: Final = 9 << 20
"""For 8 bytes for each pfn below 4 GiB, and what else there is beside pages."""


@pytest.fixture(params=Engine)
def engine(request: pytest.FixtureRequest) -> Engine:
    """The engine that saves, or that fails."""
    return Engine(request.param)


@pytest.fixture(params=Engine)
def restorer(request: pytest.FixtureRequest) -> Engine:
    return Engine(request.param)


@pytest.fixture
def source(machine: Machine) -> Domain:
    return guest(machine, 1, RAM)


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "stream"
    yield path
    path.unlink(missing_ok=True)


def assert_same(source: Domain, destination: Domain) -> None:
    """All memory is the same except for the rings, which a restore clears."""
    rings = [source.params[PARAM_STORE_PFN], source.params[PARAM_CONSOLE_PFN]]
    assert source.differences(destination) == rings
    assert [destination.page(ring) for ring in rings] == [bytes(PAGE)] * 2
    assert destination.context == source.context
    assert destination.tsc == source.tsc
    assert destination.policy == source.policy


def records(stream: Path) -> list[str]:
    with stream.open("rb") as file:
        return [entry.name for entry in inspect(file)]


def pages_by_order(pfns: NDArray[np.intp]) -> dict[int, int]:
    """The numbers of 2 MiB superpages and of single pages that these pages make, by order."""
    whole = np.bincount(pfns // SUPERPAGE) == SUPERPAGE
    superpages = int(np.count_nonzero(whole))
    return {0: len(pfns) - superpages * SUPERPAGE, 9: superpages}


def saved_live(
    stream: Path, source: Domain, machine: Machine, release: Release, engine: Engine
) -> Done:
    """Save live; in each round the guest writes to 100 more pages than in the one before."""
    began: set[int] = set()

    def policy(stats: dict[str, Any]) -> int:
        iteration = stats["iteration"]
        if iteration >= ROUNDS:
            return PrecopyPolicy.STOP_AND_COPY
        if stats["dirty_count"] == -1 and iteration not in began:
            began.add(iteration)
            source.fill(range(0x200, 0x200 + 300 * len(began), 3), len(began))
        return PrecopyPolicy.CONTINUE_PRECOPY

    return save(stream, source, machine, release, engine, policy=policy)


def test_a_suspended_guest(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
    restorer: Engine,
) -> None:
    done = save(stream, source, machine, release, engine)
    assert done.result == (0, 0), done.logged
    asked = ["switch_qemu_logdirty", "suspend", "switch_qemu_logdirty"]
    assert [name for name, _fields in done.said] == asked
    assert records(stream)[-4:] == ["X86_TSC_INFO", "HVM_CONTEXT", "HVM_PARAMS", "END"]
    assert "XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY" not in machine.counts

    done = restore(stream, destination, machine, release, restorer)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    assert_populated(source, destination, restorer)
    rings = source.params[PARAM_CONSOLE_PFN], source.params[PARAM_STORE_PFN]
    grants = [struct.unpack_from("<HHI", destination.grants, 8 * entry) for entry in (0, 1)]
    assert grants == [(1, 0, ring) for ring in rings]


def assert_populated(source: Domain, destination: Domain, restorer: Engine) -> None:
    """Each page is populated once, and in superpages by our own engine; libxenguest does so from
    4.21 on."""
    pages = source.pages()
    own = restorer is Engine.OWN
    assert destination.populated == (pages_by_order(pages) if own else {0: len(pages)})
    assert destination.state.repopulated == 0


def test_a_running_guest(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
    restorer: Engine,
) -> None:
    done = saved_live(stream, source, machine, release, engine)
    assert done.result == (0, 0), done.logged
    asked = [fields for name, fields in done.said if name == "precopy_policy"]
    told = [fields["dirty_count"] for fields in asked if 0 <= fields["dirty_count"] < 0x1000]
    # Our own engine asks within a round too, so it has begun one round more.
    assert told == [100, 200, 300][: 3 if engine is Engine.OWN else 2]
    assert machine.counts["XEN_DOMCTL_SHADOW_OP_CLEAN"] == len(told) + 1

    done = restore(stream, destination, machine, release, restorer)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    assert_populated(source, destination, restorer)


def test_what_xen_itself_has_written(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    """To a page that it has mapped (for nested virtualisation): known to be dirty at the last look
    only."""
    source.state.written_by_xen = 0x300

    def policy(stats: dict[str, Any]) -> int:
        if stats["iteration"] == 0:
            return PrecopyPolicy.CONTINUE_PRECOPY
        logged, source.state.log_dirty = source.state.log_dirty, 0
        source.fill([0x300], 7)
        source.state.log_dirty = logged
        return PrecopyPolicy.STOP_AND_COPY

    assert save(stream, source, machine, release, engine, policy=policy).result == (0, 0)
    assert restore(stream, destination, machine, release, engine).result == (0, 0)
    assert_same(source, destination)


def test_nobody_is_asked_about_holes(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    """A guest's special pages lie far above its RAM: a few batches of pages, and hundreds of holes
    between them."""
    done = saved_live(stream, source, machine, release, Engine.OWN)
    assert done.result == (0, 0), done.logged
    asked = [fields["iteration"] for name, fields in done.said if name == "precopy_policy"]
    with_pages = {pfn // 1024 for pfn in source.pages()}
    assert source.state.maximum_gpfn // 1024 > 10 * len(with_pages)
    assert len(with_pages) <= asked.count(0) <= 2 * len(with_pages) + 1
    assert restore(stream, destination, machine, release, Engine.OWN).result == (0, 0)
    assert_same(source, destination)


def test_our_own_engine_loads_little(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A small guest would wait longer for any of these than for its pages."""
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    saved = save(stream, source, machine, release, Engine.OWN)
    restored = restore(stream, destination, machine, release, Engine.OWN)
    slow = {"asyncio", "construct", "dataclasses", "msgpack", "numpy", "subprocess", "zmq"}
    slow |= {"copy", "fnmatch", "inspect", "pathlib", "shutil", "sysconfig", "tempfile", "urllib"}
    slow.add("typing")
    for done in (saved, restored):
        assert done.result == (0, 0), done.logged
        lines = done.printed.splitlines()
        modules = {line.rsplit("|", 1)[-1].strip() for line in lines}
        loaded = {module.split(".")[0] for module in modules}
        assert "xen_save_helper" in loaded
        assert loaded & slow == set()
        # With the control socket, if the work has taken long enough for one.
        assert "re" not in loaded or "json" in loaded
        ours = [importlib.import_module(m) for m in modules if m.startswith("xen_save_helper.")]
        assert [m for m in ours if typing.NamedTuple in vars(m).values()] == []


def test_a_guest_that_a_killed_helper_left_in_log_dirty_mode(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    """Xen refuses to turn it on a second time."""
    source.state.log_dirty = 1
    done = saved_live(stream, source, machine, release, engine)
    assert done.result == (0, 0), done.logged
    assert machine.counts["XEN_DOMCTL_SHADOW_OP_ENABLE_LOGDIRTY"] == 2
    assert restore(stream, destination, machine, release, engine).result == (0, 0)
    assert_same(source, destination)


def test_both_engines_write_the_same_stream(
    release: Release, machine: Machine, source: Domain, stream: Path
) -> None:
    """The streams of a suspended guest are the same, from the first byte to the last."""
    source.set_kind([0x310], Kind.BROKEN)
    digests = set()
    for engine in Engine:
        assert save(stream, source, machine, release, engine).result == (0, 0)
        with stream.open("rb") as file:
            digests.add(hashlib.file_digest(file, "sha256").hexdigest())
    assert len(digests) == 1


def test_a_guest_is_nearly_all_superpages(
    release: Release, machine: Machine, destination: Domain, stream: Path, engine: Engine
) -> None:
    """A guest of 64 MiB, laid out as libxl does a PVH guest, and written to while it is saved."""
    source = guest(machine, 1, [range(64 << 20 >> 12)])
    assert saved_live(stream, source, machine, release, engine).result == (0, 0)
    done = restore(stream, destination, machine, release, Engine.OWN)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    in_superpages = destination.populated[9] * SUPERPAGE
    assert in_superpages / len(source.pages()) > 0.95


def test_memory_without_superpages_left(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    machine.fail("XENMEM_populate_physmap", short_by=1, nth=3)
    done = restore(stream, destination, machine, release, Engine.OWN)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    whole = pages_by_order(source.pages())
    assert destination.populated == {0: whole[0] + SUPERPAGE, 9: whole[9] - 1}


@pytest.mark.parametrize("live", [False, True])
def test_pages_of_zeros_are_left_out(
    release: Release, machine: Machine, destination: Domain, stream: Path, *, live: bool
) -> None:
    """Fresh pages are full of another guest's data: those that are not cleared would show it."""
    source = guest(machine, 1, [range(0x1000)])
    zero = [*range(0x300, 0x700), 0x801]
    source.memory[zero] = 0
    # Not zeros, though nearly.
    source.memory[0x900] = 0
    source.write(0x900, b"x", PAGE - 1)

    def policy(stats: dict[str, Any]) -> int:
        if stats["iteration"] == 0:
            # One is no longer zeros, one has become zeros: both have been or will be sent.
            source.write(0x301, b"written")
            source.write(0x10, bytes(PAGE))
            return PrecopyPolicy.CONTINUE_PRECOPY
        return PrecopyPolicy.STOP_AND_COPY

    decides = policy if live else None
    done = save(stream, source, machine, release, Engine.OWN, sparse=True, policy=decides)
    assert done.result == (0, 0), done.logged
    assert stream.stat().st_size < (len(source.pages()) - 0x3F0) * PAGE + ROOM_FOR_LISTS
    with stream.open("rb") as file:
        told = [entry.summary["types"] for entry in inspect(file) if "types" in entry.summary]
    assert sum(types.get("XALLOC", 0) for types in told) >= 0x400

    done = restore(stream, destination, machine, release, Engine.OWN)
    assert done.result == (0, 0), done.logged
    assert_same(source, destination)
    assert destination.populated[9] == 0x1000 // SUPERPAGE


def test_libxenguest_refuses_a_stream_without_its_zeros(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    source.memory[0x200:0x400] = 0
    assert save(stream, source, machine, release, Engine.OWN, sparse=True).result == (0, 0)
    done = restore(stream, destination, machine, release)
    assert done.retval == -1
    assert any("0x40000020" in line for line in done.logged), done.logged
    assert "XENMEM_populate_physmap" not in machine.counts


def test_libxenguest_leaves_nothing_out(
    release: Release, machine: Machine, source: Domain, destination: Domain, stream: Path
) -> None:
    source.memory[0x200:0x400] = 0
    done = save(stream, source, machine, release, sparse=True)
    assert done.result == (0, 0)
    assert "libxenguest does not leave out pages of zeros" in done.logged
    assert restore(stream, destination, machine, release).result == (0, 0)
    assert_same(source, destination)


def test_a_running_guest_whose_scattered_pages_are_copied(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    machine.state.copies = True
    assert saved_live(stream, source, machine, release, engine).result == (0, 0)
    assert restore(stream, destination, machine, release, engine).result == (0, 0)
    assert_same(source, destination)


def test_pages_other_than_ram_travel_as_their_type_and_are_not_populated(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    source.set_kind([0x310], Kind.BROKEN)
    assert save(stream, source, machine, release, engine).result == (0, 0)
    assert restore(stream, destination, machine, release, engine).result == (0, 0)
    assert_same(source, destination)
    with stream.open("rb") as file:
        told = [entry.summary["types"] for entry in inspect(file) if "types" in entry.summary]
    assert sum(types.get("BROKEN", 0) for types in told) == 1
    assert sum(types["NOTAB"] for types in told if "NOTAB" in types) == len(source.pages())
    assert not np.any(destination.kinds[[0x310, SPECIAL_PFNS + 7]])


def test_a_guest_that_is_still_being_paged_in_is_refused(
    release: Release, machine: Machine, source: Domain, stream: Path, engine: Engine
) -> None:
    """The guest's missing pages look like holes."""
    source.set_kind(range(0x300, 0x303), Kind.PAGED_OUT)
    done = save(stream, source, machine, release, engine)
    assert done.result == (-1, errno.EBUSY)
    assert any("still being paged in, and 3 of its pages" in line for line in done.logged)
    assert "XEN_DOMCTL_getpageframeinfo3" not in machine.counts


def test_a_page_that_cannot_be_mapped(
    release: Release, machine: Machine, source: Domain, stream: Path, engine: Engine
) -> None:
    source.set_kind([0x345], Kind.UNMAPPABLE)
    done = save(stream, source, machine, release, engine)
    assert done.retval == -1
    assert any("of pfn 0x345" in line for line in done.logged)


def test_a_guest_for_which_there_is_no_memory(
    release: Release, machine: Machine, source: Domain, stream: Path, engine: Engine
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    small = machine.domain(2, max_pages=0x800)
    assert restore(stream, small, machine, release, engine).result == (-1, errno.EBUSY)
    assert len(small.pages()) == 0x800


def test_a_domain_that_has_run_keeps_its_cpu_policy(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    destination.resume()
    assert restore(stream, destination, machine, release, engine).result == (-1, errno.EEXIST)


def test_a_short_populate_is_busy(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    assert save(stream, source, machine, release).result == (0, 0)
    machine.fail("XENMEM_populate_physmap", short_by=1, nth=2)
    assert restore(stream, destination, machine, release, engine).result == (-1, errno.EBUSY)


def test_a_short_bitmap_ends_a_save(
    release: Release, machine: Machine, source: Domain, stream: Path, engine: Engine
) -> None:
    machine.fail("XEN_DOMCTL_SHADOW_OP_CLEAN", short_by=1)
    assert saved_live(stream, source, machine, release, engine).retval == -1


OF_BOTH_SAVES: Final = {
    "xencall_open": 1,
    "xenforeignmemory_open": 1,
    "xendevicemodel_open": 1,
    "xencall_alloc_buffer": 1,
    "xencall_alloc_buffer_pages": 1,
    "XEN_SYSCTL_getdomaininfolist": 1,
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
"""What a live save asks for, and how often it must fail: log-dirty is tried twice."""
BY_A_SAVE: Final = {
    Engine.OWN: OF_BOTH_SAVES,
    Engine.LIBXENGUEST: {**OF_BOTH_SAVES, "XEN_DOMCTL_getdomaininfo": 1},
}

OF_BOTH_RESTORES: Final = (
    "xencall_open",
    "xenforeignmemory_open",
    "xendevicemodel_open",
    "xenforeignmemory_map",
    "XEN_DOMCTL_set_cpu_policy",
    "XENMEM_populate_physmap",
    "XEN_DOMCTL_settscinfo",
    "HVMOP_set_param",
    "XEN_DOMCTL_sethvmcontext",
    "xenforeignmemory_map_resource",
)
BY_A_RESTORE: Final = {
    Engine.OWN: (
        *OF_BOTH_RESTORES,
        "XEN_SYSCTL_getdomaininfolist",
        "XEN_SYSCTL_get_cpu_policy",
        "xencall_alloc_buffer",
    ),
    Engine.LIBXENGUEST: (*OF_BOTH_RESTORES, "XEN_DOMCTL_getdomaininfo", "XENMEM_maximum_gpfn"),
}
OF_OUR_CHECK: Final = {
    Engine.OWN: set(),
    Engine.LIBXENGUEST: {"XEN_SYSCTL_get_cpu_policy", "xencall_alloc_buffer"},
}
"""What else a restore asks for: the host's CPU policy, without which libxenguest goes on."""


def test_no_call_is_missing_from_these_tests(
    release: Release,
    machine: Machine,
    source: Domain,
    destination: Domain,
    stream: Path,
    engine: Engine,
) -> None:
    assert saved_live(stream, source, machine, release, engine).result == (0, 0)
    by_save = machine.counts
    assert set(by_save) == set(BY_A_SAVE[engine])
    assert restore(stream, destination, machine, release, engine).result == (0, 0)
    by_restore = {name for name, count in machine.counts.items() if count > by_save.get(name, 0)}
    assert by_restore == {*BY_A_RESTORE[engine], *OF_OUR_CHECK[engine]}


@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine, names in BY_A_SAVE.items() for name in names],
)
def test_a_call_of_a_save_fails(
    release: Release, machine: Machine, source: Domain, stream: Path, engine: Engine, name: str
) -> None:
    machine.fail(name, errno.EXDEV, times=BY_A_SAVE[engine][name])
    done = saved_live(stream, source, machine, release, engine)
    if name == "XEN_DOMCTL_SHADOW_OP_OFF":
        # The guest is complete all the same.
        assert done.result == (0, 0)
        assert machine.complaints() == ["domain 1 is in log-dirty mode"]
        source.state.log_dirty = 0
        told = any("could not switch log-dirty mode off" in line for line in done.logged)
        assert told == (engine is Engine.OWN)
    elif name == "xencall_alloc_buffer_pages":
        assert done.result == (-1, errno.ENOMEM)
    else:
        assert done.result == (-1, errno.EXDEV)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved") / "stream"


@pytest.mark.parametrize(
    ("engine", "name"),
    [(engine, name) for engine, names in BY_A_RESTORE.items() for name in names],
)
def test_a_call_of_a_restore_fails(
    release: Release,
    machine: Machine,
    destination: Domain,
    saved: Path,
    engine: Engine,
    name: str,
) -> None:
    if not saved.exists():
        assert save(saved, guest(machine, 1, RAM), machine, release).result == (0, 0)
    machine.fail(name, errno.EXDEV)
    assert restore(saved, destination, machine, release, engine).result == (-1, errno.EXDEV)
