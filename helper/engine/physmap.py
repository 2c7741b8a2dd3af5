"""The pages that a domain under restore has been given (populate_pfns of xg_sr_restore.c)."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from itertools import compress

from xen_save_helper.helper.hypervisors.interface import Domain
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import Pfns, is_run, pfns_of, run_of, runs_of

_SUPERPAGE_ORDER = 9
_SUPERPAGE = 1 << _SUPERPAGE_ORDER
"""Pages of 2 MiB."""

_LOW_PFNS = 1 << 20
"""Below 4 GiB a guest may have pages anywhere: its special pages are just below."""

_ABSENT: Final = (type_octet(PageType.XTAB), type_octet(PageType.BROKEN))
_EXISTS: Final = bytes(octet not in _ABSENT for octet in range(256))
"""For each type, whether such pages are populated."""


class Physmap:
    """Gives a domain the pages that its stream names, each once. If a record has a whole aligned
    2 MiB in order, as in a sender's first round, they become one superpage: a guest on 4 KiB pages
    loses up to 15 % of its speed. (Xen 4.21 and later do this in populate_pfns.)

    A byte for each possible pfn, in memory that the kernel gives as it is touched.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.memory = domain.getinfo().max_memkb // 4
        """The pages of the domain's memory."""
        self.limit = _LOW_PFNS + self.memory
        """All pfns are below this: memory that does not fit under 4 GiB is moved above it."""
        self._populated = bytearray(self.limit)
        self.count = 0
        """Pages that the domain has been given."""

    def check(self, pfns: Pfns, offset: int) -> bool:
        """Raise DecodeError for a pfn that this domain cannot have. Returns whether they are
        neighbours in ascending order."""
        run = is_run(pfns)
        last = pfns[-1] if run else max(pfns)
        if last >= self.limit:
            raise DecodeError(
                "page list",
                offset,
                f"pfn {last:#x} outside the domain, which ends at {self.limit:#x}",
            )
        return run

    def populate(self, pfns: Pfns, types: bytes, offset: int) -> None:
        """Give the domain those of `pfns` that it lacks and whose type (see
        `page_types.type_octet`) says that they exist.

        Raises DecodeError, and OSError(ENOMEM) beyond the domain's memory.
        """
        run = self.check(pfns, offset)
        exists = types.translate(_EXISTS)
        if 1 not in exists:
            return
        populated = self._populated
        if run and 0 not in exists:
            first, end = pfns[0], pfns[0] + len(pfns)
            if populated.find(1, first, end) < 0:
                populated[first:end] = exists
                self._populate([range(first, end)])
                return
            if populated.find(0, first, end) < 0:
                return
        new = pfns_of()
        for pfn in compress(pfns, exists):
            if not populated[pfn]:
                populated[pfn] = 1
                new.append(pfn)
        self._populate([range(first, first + count) for first, count, _ in runs_of(new)])

    def is_taken(self, pfns: Pfns) -> None:
        """The domain has had these pages, and will not have them again."""
        for pfn in pfns:
            if pfn < self.limit:
                self._populated[pfn] = 1

    def populate_one(self, pfn: int, offset: int) -> None:
        self.populate(pfns_of([pfn]), bytes([type_octet(PageType.NOTAB)]), offset)

    def _populate(self, runs: Sequence[range]) -> None:
        small = pfns_of()
        for run in runs:
            for part in _split(run):
                if len(part) != _SUPERPAGE or not self._populate_superpage(part[0]):
                    small += run_of(part[0], len(part))
        if small:
            self._domain.populate_physmap_exact(small)
        self.count += sum(map(len, runs))

    def _populate_superpage(self, pfn: int) -> bool:
        """Populate one superpage; False if memory is too fragmented."""
        try:
            self._domain.populate_physmap_exact(pfns_of([pfn]), _SUPERPAGE_ORDER)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOMEM):
                raise
            return False
        return True


def _split(pfns: range) -> Iterator[range]:
    """The parts of a run in each of the aligned 2 MiB that it touches."""
    start = pfns.start
    while start < pfns.stop:
        end = min(pfns.stop, start + _SUPERPAGE - start % _SUPERPAGE)
        yield range(start, end)
        start = end
