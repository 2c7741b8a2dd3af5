"""The pages that a domain under restore has been given (populate_pfns of xg_sr_restore.c)."""

from __future__ import annotations

import errno

import numpy as np
from numpy.typing import NDArray

from xen_save_helper.helper.hypervisors.interface import Domain, Pfns
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.page_types import PageType

_SUPERPAGE_ORDER = 9
_SUPERPAGE = 1 << _SUPERPAGE_ORDER
"""Pages of 2 MiB."""

_LOW_PFNS = 1 << 20
"""Below 4 GiB a guest may have pages anywhere: its special pages are just below."""


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
        self._populated = np.zeros(self.limit, np.bool_)
        self.count = 0
        """Pages that the domain has been given."""

    def check(self, pfns: Pfns, offset: int) -> None:
        """Raise DecodeError for a pfn that this domain cannot have."""
        highest = int(pfns.max())
        if highest >= self.limit:
            raise DecodeError(
                "page list",
                offset,
                f"pfn {highest:#x} outside the domain, which ends at {self.limit:#x}",
            )

    def populate(self, pfns: Pfns, types: NDArray[np.uint32], offset: int) -> None:
        """Give the domain those of `pfns` that it lacks and whose type says that they exist.

        Raises DecodeError, and OSError(ENOMEM) beyond the domain's memory.
        """
        self.check(pfns, offset)
        wanted = ~self._populated[pfns]
        wanted &= (types != PageType.XTAB) & (types != PageType.BROKEN)
        if wanted.any():
            new = pfns[wanted]
            self._populate(new)
            self._populated[new] = True
            self.count += len(new)

    def populate_one(self, pfn: int, offset: int) -> None:
        self.populate(np.array([pfn], np.uint64), np.zeros(1, np.uint32), offset)

    def _populate(self, pfns: Pfns) -> None:
        small = np.ones(len(pfns), np.bool_)
        for start in _superpages(pfns):
            if self._populate_superpage(pfns[start]):
                small[start : start + _SUPERPAGE] = False
        if small.any():
            self._domain.populate_physmap_exact(pfns[small])

    def _populate_superpage(self, pfn: np.uint64) -> bool:
        """Populate one superpage; False if memory is too fragmented."""
        try:
            self._domain.populate_physmap_exact(np.array([pfn], np.uint64), _SUPERPAGE_ORDER)
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOMEM):
                raise
            return False
        return True


def _superpages(pfns: Pfns) -> list[int]:
    """The indices in `pfns` at which a whole aligned superpage starts, its pages in order."""
    aligned = np.flatnonzero(pfns % np.uint64(_SUPERPAGE) == 0)
    starts = aligned[aligned + _SUPERPAGE <= len(pfns)]
    rising = np.arange(_SUPERPAGE, dtype=np.uint64)
    return [
        start
        for start in starts.tolist()
        if (pfns[start : start + _SUPERPAGE] == pfns[start] + rising).all()
    ]
