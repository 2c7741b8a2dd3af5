"""A machine without a hypervisor, as tests see it: its domains, what fails, and what was called.

The state is in files that every process on the machine maps (machine.h says which). The structures
here are those of machine.h; build.py has the C compiler compare them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import weakref
from collections.abc import Iterable
from ctypes import c_int32, c_int64, c_uint8, c_uint32, c_uint64
from enum import IntEnum
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

PAGE: Final = 4096

MAX_TALLIES: Final = 256
MAX_LEAVES: Final = 256
MAX_MSRS: Final = 64
MAX_CONTEXT: Final = 65536
MAX_PARAMS: Final = 64
MAX_ORDER: Final = 32
MAX_VCPUS: Final = 16

_DOMINF_DYING: Final = 1 << 0
_DOMINF_HVM_GUEST: Final = 1 << 1
_DOMINF_SHUTDOWN: Final = 1 << 2
_DOMINF_PAUSED: Final = 1 << 3
_DOMINF_RUNNING: Final = 1 << 5
_DOMINF_SHUTDOWNSHIFT: Final = 16
_SHUTDOWN_SUSPEND: Final = 2

Pfns = Iterable[int]

_Struct = TypeVar("_Struct", bound=ctypes.Structure)


class Kind(IntEnum):
    """What is at a pfn: `enum kind`."""

    HOLE = 0
    RAM = 1
    SPECIAL = 2
    """A page of Xen's own, such as shared_info: XTAB, but it can be mapped."""
    PAGED_OUT = 3
    """XTAB; mapping it fails with ENOENT."""
    BROKEN = 4
    UNMAPPABLE = 5
    """RAM that cannot be mapped: EFAULT."""
    NOMINATED = 6
    """RAM that a pager may evict."""
    PAGING_IN = 7
    """PAGED_OUT, and its pager has been asked for it."""
    RETURNING = 8
    """NOMINATED, and its pager has been asked for it."""


class TallyStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char * 56),
        ("count", c_uint64),
        ("fail_from", c_uint64),
        ("fail_to", c_uint64),
        ("fail_errno", c_int32),
        ("short_by", c_uint32),
        ("unknown", c_uint32),
        ("pad", c_uint32),
    ]


class LeafStruct(ctypes.Structure):
    _fields_ = [(name, c_uint32) for name in ("leaf", "subleaf", "a", "b", "c", "d")]


class MsrStruct(ctypes.Structure):
    _fields_ = [("index", c_uint32), ("flags", c_uint32), ("value", c_uint64)]


class MachineStruct(ctypes.Structure):
    _fields_ = [
        ("nr_tallies", c_uint32),
        ("lock", c_uint32),
        ("version", c_uint32),
        ("nr_leaves", c_uint32),
        ("nr_msrs", c_uint32),
        ("copies", c_uint32),
        ("keeps", c_uint32),
        ("pad", c_uint32),
        ("buffers_held", c_int64),
        ("handles_open", c_int64),
        ("mappings_left", c_int64),
        ("leaves", LeafStruct * MAX_LEAVES),
        ("msrs", MsrStruct * MAX_MSRS),
        ("tallies", TallyStruct * MAX_TALLIES),
    ]


class DomainStruct(ctypes.Structure):
    _fields_ = [
        ("capacity", c_uint64),
        ("maximum_gpfn", c_uint64),
        ("tot_pages", c_uint64),
        ("max_pages", c_uint64),
        ("claimed_pages", c_uint64),
        ("paged_pages", c_uint64),
        ("repopulated", c_uint64),
        ("flags", c_uint32),
        ("log_dirty", c_uint32),
        ("garbage", c_uint32),
        ("tsc_mode", c_uint32),
        ("tsc_khz", c_uint32),
        ("tsc_incarnation", c_uint32),
        ("tsc_nsec", c_uint64),
        ("written_by_xen", c_uint64),
        ("params", c_uint64 * MAX_PARAMS),
        ("extents", c_uint64 * MAX_ORDER),
        ("context_bytes", c_uint32),
        ("nr_leaves", c_uint32),
        ("nr_msrs", c_uint32),
        ("started", c_uint32),
        ("writes", c_uint32),
        ("gone", c_uint32),
        ("paging", c_uint32),
        ("ring_lock", c_uint32),
        ("ring_req_prod", c_uint32),
        ("ring_rsp_cons", c_uint32),
        ("ring_pfn", c_uint64),
        ("queued", c_uint64 * MAX_VCPUS),
        ("pauses", c_uint32 * MAX_VCPUS),
        ("leaves", LeafStruct * MAX_LEAVES),
        ("msrs", MsrStruct * MAX_MSRS),
        ("context", c_uint8 * MAX_CONTEXT),
    ]


STRUCTS: Final[dict[str, type[ctypes.Structure]]] = {
    "tally": TallyStruct,
    "leaf": LeafStruct,
    "msr": MsrStruct,
    "machine": MachineStruct,
    "domain": DomainStruct,
}
"""The structures, by their names in machine.h."""

LEAVES: Final = (
    (0, 0xFFFFFFFF, 1, 0x756E6547, 0x6C65746E, 0x49656E69),
    (1, 0xFFFFFFFF, 0x000306A9, 0x00010800, 0x80000201, 0x078BFBFF),
    (0x40000000, 0xFFFFFFFF, 0, 0, 0, 0),
    (0x40000100, 0xFFFFFFFF, 0, 0, 0, 0),
    (0x80000000, 0xFFFFFFFF, 0x80000001, 0, 0, 0),
    (0x80000001, 0xFFFFFFFF, 0, 0, 1, 0x28100800),
)
"""A CPU policy with the leaves that libxenguest always serialises: an Intel processor."""

SPECIAL_PFNS: Final = 0xFEFF8
"""The pfn from which on libxl puts an HVM or PVH guest's rings."""
PARAM_STORE_PFN: Final = 1
PARAM_CONSOLE_PFN: Final = 17
PARAM_PAGING_RING_PFN: Final = 27

_WAIT_SECONDS: Final = 30
"""The longest that a vCPU waits for its page."""


class Domain:
    """A domain of a machine. Pages are 4 KiB; a pfn without a page is a hole. `library`, the
    stand-in itself, is for `access`, `read` and `release`."""

    def __init__(self, directory: Path, domid: int, library: Path | None = None) -> None:
        self.domid = domid
        self._directory = os.fsencode(directory)
        self._library = None if library is None else ctypes.CDLL(str(library))
        self._vcpus = os.open(directory / f"vcpus-{domid}", os.O_RDWR | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._vcpus)
        state = _mapped(directory / f"domain-{domid}")
        self.state = DomainStruct.from_buffer(state)
        capacity = self.state.capacity
        places = np.frombuffer(state, np.uint8)[-4 * capacity :]
        self.kinds: NDArray[np.uint8] = places[:capacity]
        self.dirty: NDArray[np.uint8] = places[capacity : 2 * capacity]
        self.memory: NDArray[np.uint8] = np.frombuffer(
            _mapped(directory / f"memory-{domid}"), np.uint8
        ).reshape(-1, PAGE)
        """A row for each pfn. Writing here marks nothing dirty: see `write`."""
        self.grants = _mapped(directory / f"grants-{domid}")

    def set_kind(self, pfns: Pfns, kind: Kind = Kind.RAM) -> None:
        """Put pages of a kind at these pfns; a page that is RAM for the first time is zeroed."""
        places = _places(pfns)
        had = np.count_nonzero(np.isin(self.kinds[places], _OWN))
        self.kinds[places] = kind
        self.state.paged_pages = np.count_nonzero(np.isin(self.kinds, _OUT))
        has = len(places) if kind in _OWN else 0
        self.state.tot_pages += int(has - had)
        if len(places):
            self.state.maximum_gpfn = max(self.state.maximum_gpfn, int(places.max()))

    def fill(self, pfns: Pfns, version: int = 0) -> None:
        """Fill each of these pages with contents that no other page or version has."""
        places = _places(pfns)
        self._mark(places)
        words = self.memory.view(np.uint64)
        numbers = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(version)
        words[places] = numbers[:, None] + np.arange(PAGE // 8, dtype=np.uint64)

    def write(self, pfn: int, data: bytes, offset: int = 0) -> None:
        """Write as a vCPU does: a page is logged as dirty before it is written."""
        self._mark(np.array([pfn]))
        self.memory[pfn, offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def page(self, pfn: int) -> bytes:
        return bytes(self.memory[pfn])

    def pages(self, *kinds: Kind) -> NDArray[np.intp]:
        """The pfns that have a page of one of these kinds (by default RAM)."""
        return np.flatnonzero(np.isin(self.kinds, kinds or (Kind.RAM,)))

    def differences(self, other: Domain) -> list[int]:
        """The pfns at which this guest's RAM differs from the other's, in place or in contents."""
        here, there = self.pages(), other.pages()
        both = np.intersect1d(here, there)
        unlike = [
            pfns[np.any(self.memory[pfns] != other.memory[pfns], axis=1)]
            for pfns in np.array_split(both, max(1, len(both) // 4096))
        ]
        return sorted(int(pfn) for pfn in [*np.setxor1d(here, there), *np.concatenate(unlike)])

    def suspend(self) -> None:
        shut_down = _DOMINF_SHUTDOWN | _SHUTDOWN_SUSPEND << _DOMINF_SHUTDOWNSHIFT
        self.state.flags = _DOMINF_HVM_GUEST | shut_down

    def keep_writing(self, one_in: int) -> None:
        """While dirty pages are logged, one of so many, always the same ones, is dirty again as
        soon as it has been cleaned. Its contents stay."""
        self.state.writes = one_in

    def access(self, pfn: int, vcpu: int = 0, *, writes: bool = False) -> bool:
        """Have a vCPU read or write to a page. Returns False if it has to wait, for `go_on`, and
        then to try again. Raises OSError: ENXIO for a pfn without a page, EFAULT for one that is
        paged out while there is no pager, which ends the domain, ESRCH if the domain is gone."""
        assert self._library is not None
        result: int = self._library.hypercalls_access(
            self._directory, self.domid, vcpu, c_uint64(pfn), writes
        )
        if result < 0:
            raise OSError(-result, f"pfn {pfn:#x}: {os.strerror(-result)}")
        return result == 0

    def go_on(self, seconds: float = _WAIT_SECONDS) -> int | None:
        """Wait until a vCPU may go on, and return its number; None if none may in that time."""
        ready, _, _ = select.select([self._vcpus], [], [], seconds)
        return os.read(self._vcpus, 1)[0] if ready else None

    def read(self, pfn: int) -> bytes:
        """Have vCPU 0, the only one that runs, read a page, and wait for it if need be."""
        while not self.access(pfn):
            assert self.go_on() == 0, f"pfn {pfn:#x} did not come"
        return self.page(pfn)

    def release(self, pfn: int) -> None:
        """Give back a page that is paged out."""
        assert self._library is not None
        result = self._library.hypercalls_release(self._directory, self.domid, c_uint64(pfn))
        if result:
            raise OSError(-result, f"pfn {pfn:#x}: {os.strerror(-result)}")

    def destroy(self, *, gone: bool = False) -> None:
        """Be dying, as Xen leaves a domain of which somebody has pages mapped, or gone."""
        self.state.flags |= _DOMINF_DYING
        self.state.gone = gone
        self.state.paging = 0
        self.state.claimed_pages = 0

    def resume(self) -> None:
        """Run, for the first time or again."""
        self.state.flags = _DOMINF_HVM_GUEST | _DOMINF_RUNNING
        self.state.started = True

    @property
    def context(self) -> bytes:
        return bytes(self.state.context[: self.state.context_bytes])

    @context.setter
    def context(self, context: bytes) -> None:
        self.state.context[: len(context)] = context
        self.state.context_bytes = len(context)

    @property
    def params(self) -> dict[int, int]:
        """The HVM parameters that are not 0, by number."""
        return {index: value for index, value in enumerate(self.state.params) if value}

    @property
    def tsc(self) -> tuple[int, int, int, int]:
        """Mode, nanoseconds, kHz and incarnation."""
        state = self.state
        return state.tsc_mode, state.tsc_nsec, state.tsc_khz, state.tsc_incarnation

    @tsc.setter
    def tsc(self, tsc: tuple[int, int, int, int]) -> None:
        state = self.state
        state.tsc_mode, state.tsc_nsec, state.tsc_khz, state.tsc_incarnation = tsc

    @property
    def policy(self) -> list[tuple[int, ...]]:
        return [_row(leaf) for leaf in self.state.leaves[: self.state.nr_leaves]]

    @property
    def populated(self) -> dict[int, int]:
        """The number of extents populated by hypercalls, by order: 0 is 4 KiB, 9 is 2 MiB."""
        return {order: count for order, count in enumerate(self.state.extents) if count}

    def _mark(self, places: NDArray[np.intp]) -> None:
        if self.state.log_dirty:
            self.dirty[places] = 1


class Machine:
    """A machine in an empty directory. For benchmarks use a directory in /dev/shm, and `copies`: an
    mmap for each of a thousand scattered pages costs ten times what privcmd's one call does, so
    scattered pages that are mapped for reading are copied instead. What the guest writes to them
    meanwhile is not seen then, which matters if a page is mapped before its dirty bit is cleaned.
    With `state.keeps`, evicted pages keep their memory: Linux would take far longer for what is an
    entry in Xen's page table. `library` is the stand-in, for guests that access pages which are
    paged out.
    """

    def __init__(
        self,
        directory: Path,
        version: str = "4.17",
        *,
        copies: bool = False,
        library: Path | None = None,
    ) -> None:
        self.directory = directory
        self._library = library
        _made(directory / "machine", ctypes.sizeof(MachineStruct))
        self.state = MachineStruct.from_buffer(_mapped(directory / "machine"))
        major, minor = version.split(".")
        self.state.version = int(major) << 16 | int(minor)
        self.state.copies = copies
        _set_rows(self.state.leaves, LEAVES)
        self.state.nr_leaves = len(LEAVES)
        self.domains: dict[int, Domain] = {}

    @property
    def environment(self) -> dict[str, str]:
        """What a process on this machine needs in its environment."""
        return {"HYPERCALLS_MACHINE": str(self.directory)}

    def domain(
        self,
        domid: int,
        capacity: int = 0x100000,
        *,
        max_pages: int | None = None,
        garbage: bool = True,
        used: bool = False,
    ) -> Domain:
        """Make an HVM domain that has no pages and has not run, with room for pfns up to `capacity`
        and for `max_pages` pages. With `garbage`, pages that a hypercall populates are full of it;
        those that a test puts there are not. With `used`, its memory is that of the last domain of
        this number, so that Linux need not find and zero its pages, as Xen need not either."""
        whole = -(-ctypes.sizeof(DomainStruct) // PAGE) * PAGE
        if not used:
            _made(self.directory / f"memory-{domid}", capacity * PAGE)
        _made(self.directory / f"grants-{domid}", PAGE)
        for kind in ("events", "vcpus"):
            fifo = self.directory / f"{kind}-{domid}"
            fifo.unlink(missing_ok=True)
            os.mkfifo(fifo)
        _made(self.directory / f"domain-{domid}", whole + 4 * capacity, capacity)
        domain = self.domains[domid] = Domain(self.directory, domid, self._library)
        domain.state.max_pages = capacity if max_pages is None else max_pages
        domain.state.garbage = garbage
        _set_rows(domain.state.leaves, LEAVES)
        domain.state.nr_leaves = len(LEAVES)
        domain.state.flags = _DOMINF_HVM_GUEST | _DOMINF_PAUSED
        return domain

    def fail(
        self, name: str, errnoval: int = 0, nth: int = 1, times: int = 1, *, short_by: int = 0
    ) -> None:
        """Have `times` calls of this name, from the `nth` from now on, fail with `errnoval`. With
        `short_by` they succeed, but do so many items less: extents of a populate, pages of a dirty
        bitmap.

        The names are those of the hypercalls (XENMEM_populate_physmap,
        XEN_DOMCTL_getdomaininfo, XEN_DOMCTL_SHADOW_OP_CLEAN, HVMOP_get_param, XENVER_version,
        XEN_DMOP_modified_memory) and of the functions xencall_open, xencall_alloc_buffer,
        xencall_alloc_buffer_pages, xenforeignmemory_open, xenforeignmemory_map,
        xenforeignmemory_map_resource, xenevtchn_open, xenevtchn_bind_interdomain and
        xendevicemodel_open.
        """
        row = next((row for row in self._tallies() if row.name == name.encode()), None)
        if row is None:
            row = self.state.tallies[self.state.nr_tallies]
            row.name = name.encode()
            self.state.nr_tallies += 1
        row.fail_errno, row.short_by = errnoval, short_by
        row.fail_to = row.count + nth + times - 1
        row.fail_from = row.count + nth

    @property
    def counts(self) -> dict[str, int]:
        """The number of calls, by the names that `fail` knows."""
        return {row.name.decode(): row.count for row in self._tallies() if row.count}

    def unmet(self) -> list[str]:
        """The names of the failures that were asked for and never happened."""
        return [row.name.decode() for row in self._tallies() if row.count < row.fail_from]

    def complaints(self) -> list[str]:
        """What processes that have ended should not have left, or not have called."""
        state = self.state
        found = [f"asked for {row.name.decode()}" for row in self._tallies() if row.unknown]
        if state.buffers_held:
            found.append(f"{state.buffers_held} hypercall buffers are still held")
        if state.mappings_left:
            found.append(f"{state.mappings_left} mappings of guests' memory were left")
        if state.handles_open:
            found.append(f"{state.handles_open} handles are still open")
        for domid, domain in self.domains.items():
            if domain.state.log_dirty:
                found.append(f"domain {domid} is in log-dirty mode")
            if domain.state.paging:
                found.append(f"domain {domid} has a paging ring")
            if domain.state.claimed_pages:
                found.append(f"domain {domid} has {domain.state.claimed_pages} pages claimed")
        return found

    def _tallies(self) -> list[Any]:
        return list(self.state.tallies[: self.state.nr_tallies])


_OWN: Final = (Kind.RAM, Kind.UNMAPPABLE, Kind.NOMINATED, Kind.RETURNING)
"""Kinds of pages that count as the domain's."""
_OUT: Final = (Kind.PAGED_OUT, Kind.PAGING_IN)


def _places(pfns: Pfns) -> NDArray[np.intp]:
    return np.fromiter(pfns, np.intp)


def _made(path: Path, size: int, capacity: int | None = None) -> None:
    """Make a file of zeros. A domain's has its capacity at the start before anybody can see it."""
    scratch = path.with_suffix(".new")
    with scratch.open("wb") as file:
        file.truncate(size)
        if capacity is not None:
            file.write(capacity.to_bytes(8, "little"))
    scratch.rename(path)


def _mapped(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR)
    try:
        return mmap.mmap(descriptor, 0)
    finally:
        os.close(descriptor)


def _set_rows(rows: Any, values: Iterable[tuple[int, ...]]) -> None:
    for row, value in zip(rows, values, strict=False):
        for (name, *_), number in zip(row._fields_, value, strict=True):
            setattr(row, name, number)


def _row(struct: _Struct) -> tuple[int, ...]:
    return tuple(getattr(struct, name) for name, *_ in struct._fields_)
