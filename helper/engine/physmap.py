"""Which pages a domain under restore has been given (populate_pfns of xg_sr_restore.c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xen_save_helper.helper.hypervisors.interface import Domain, Pfns
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.page_types import PageType

_LOW_PFNS = 1 << 20
"""Below 4 GiB a guest may have pages anywhere: its special ones are just below."""


class Physmap:
    """Gives a domain the pages that its stream speaks of, each once.

    An octet for each possible pfn, in memory that the kernel gives as it is touched.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.memory = domain.getinfo().max_memkb // 4
        """The pages of the domain's memory."""
        self.limit = _LOW_PFNS + self.memory
        """All pfns are below: memory that does not fit under 4 GiB is moved above."""
        self._populated = np.zeros(self.limit, np.bool_)
        self.count = 0
        """How many pages it has been given."""

    def check(self, pfns: Pfns, offset: int) -> None:
        """Raises DecodeError for a pfn that this domain cannot have."""
        highest = int(pfns.max())
        if highest >= self.limit:
            raise DecodeError(
                "page list",
                offset,
                f"pfn {highest:#x} outside the domain, which ends at {self.limit:#x}",
            )

    def populate(self, pfns: Pfns, types: NDArray[np.uint32], offset: int) -> None:
        """Give the domain those of `pfns` that it lacks and whose type is of a page that exists.

        Raises DecodeError, and OSError(ENOMEM) beyond the domain's memory.
        """
        self.check(pfns, offset)
        wanted = ~self._populated[pfns]
        wanted &= (types != PageType.XTAB) & (types != PageType.BROKEN)
        if wanted.any():
            new = pfns[wanted]
            self._domain.populate_physmap_exact(new)
            self._populated[new] = True
            self.count += len(new)

    def populate_one(self, pfn: int, offset: int) -> None:
        self.populate(np.array([pfn], np.uint64), np.zeros(1, np.uint32), offset)
