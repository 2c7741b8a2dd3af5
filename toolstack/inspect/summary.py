"""A migration stream in figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.pfns import Pfns

_BLOCK_BITS: Final = 12
_BLOCK: Final = 1 << _BLOCK_BITS
_MAX_BLOCKS: Final = 1 << 17
"""Blocks of 4096 pfns that a set can hold: a guest of 2 TiB, in 64 MiB of memory."""
_EMPTY: Final = bytes(_BLOCK // 8)


class PfnSet:
    """A set of pfns in bounded memory: bitmaps of the blocks that are not empty."""

    def __init__(self) -> None:
        self.count = 0
        self.overflowed = False
        """Whether the pfns are too far apart for the memory that a set may use: it has stopped
        growing."""
        self._blocks: dict[int, bytes] = {}

    def add(self, pfns: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Add `pfns`, sorted and without duplicates; returns those that were in the set before."""
        known = np.zeros(len(pfns), np.bool_)
        places = (pfns & np.uint64(_BLOCK - 1)).astype(np.intp)
        numbers, starts = np.unique(pfns >> np.uint64(_BLOCK_BITS), return_index=True)
        bounds = [*starts.tolist(), len(pfns)]
        for number, (start, end) in zip(numbers.tolist(), pairwise(bounds), strict=True):
            block = self._blocks.get(number)
            if block is None:
                if len(self._blocks) == _MAX_BLOCKS:
                    self.overflowed = True
                    continue
                block = _EMPTY
            bits = np.unpackbits(np.frombuffer(block, np.uint8))
            here = places[start:end]
            known[start:end] = bits[here]
            bits[here] = 1
            self._blocks[number] = np.packbits(bits).tobytes()
            self.count += end - start - int(np.count_nonzero(known[start:end]))
        return pfns[known]


@dataclass
class Summary:
    """One stream's figures, filled in by `toolstack.inspect.walk.inspect`.

    libxc sends the pages of a round in the order of their pfns. So a PAGE_DATA record begins a new
    round if its first pfn is below the last one of the record before, or if it is the first one
    after CHECKPOINT or VERIFY. A round that begins above the end of the one before goes unnoticed,
    so there may be more rounds.
    """

    records: Counter[str] = field(default_factory=Counter)
    """Records by layer and name, such as `libxc PAGE_DATA`."""
    octets: int = 0
    rounds: int = 0
    pages_with_contents: int = 0
    """Entries of PAGE_DATA with contents; a page that was sent twice counts twice."""
    pages_without_contents: int = 0
    """Entries of PAGE_DATA of types BROKEN, XALLOC and XTAB."""
    postcopy_pfns: int = 0
    """Pages left for postcopy (POSTCOPY_PFNS)."""
    postcopy_pages: int = 0
    """Pages that came after the postcopy transition (POSTCOPY_PAGE_DATA)."""
    _listed: PfnSet = field(default_factory=PfnSet, repr=False)
    _present: PfnSet = field(default_factory=PfnSet, repr=False)
    _repeated: PfnSet = field(default_factory=PfnSet, repr=False)
    _last_pfn: int | None = field(default=None, repr=False)

    @property
    def distinct_pfns(self) -> int | None:
        """pfns in PAGE_DATA and POSTCOPY_PAGE_DATA, each counted once; None if they are too far
        apart to be counted in bounded memory."""
        return _counted(self._listed)

    @property
    def distinct_pages(self) -> int | None:
        """pfns that came with contents at least once."""
        return _counted(self._present)

    @property
    def repeated_pfns(self) -> int | None:
        """pfns that came more than once."""
        return None if self._listed.overflowed else _counted(self._repeated)

    def add_record(self, layer: str, name: str) -> None:
        """Count a record, or a header, that was read to its end."""
        self.records[f"{layer} {name}"] += 1

    def begin_page_data(self, kind: RecordType, first_pfn: int) -> None:
        """Begin a record with page contents; its pages follow by `add_pages`."""
        if kind is RecordType.PAGE_DATA and (self._last_pfn is None or first_pfn < self._last_pfn):
            self.rounds += 1

    def end_round(self) -> None:
        """Have the next PAGE_DATA begin a round, whatever its pfns."""
        self._last_pfn = None

    def add_pages(self, kind: RecordType, pfns: Pfns, with_contents: bytes) -> None:
        """Add pages, at least one, of a PAGE_DATA, POSTCOPY_PAGE_DATA or POSTCOPY_PFNS record. An
        octet of `with_contents` is 1 for each page that has them."""
        if kind is RecordType.POSTCOPY_PFNS:
            self.postcopy_pfns += len(pfns)
            return
        present = with_contents.count(1)
        if kind is RecordType.PAGE_DATA:
            self.pages_with_contents += present
            self.pages_without_contents += len(pfns) - present
            self._last_pfn = pfns[-1]
        else:
            self.postcopy_pages += present
        added = np.frombuffer(pfns, np.uint64)
        unique, counts = np.unique(added, return_counts=True)
        self._repeated.add(np.union1d(self._listed.add(unique), unique[counts > 1]))
        self._present.add(np.unique(added[np.frombuffer(with_contents, np.bool_)]))

    def as_dict(self) -> dict[str, Any]:
        """The figures, fit for JSON."""
        return {
            "octets": self.octets,
            "records": dict(self.records),
            "rounds": self.rounds,
            "pages_with_contents": self.pages_with_contents,
            "pages_without_contents": self.pages_without_contents,
            "distinct_pfns": self.distinct_pfns,
            "distinct_pages": self.distinct_pages,
            "repeated_pfns": self.repeated_pfns,
            "postcopy_pfns": self.postcopy_pfns,
            "postcopy_pages": self.postcopy_pages,
        }


def _counted(pfns: PfnSet) -> int | None:
    return None if pfns.overflowed else pfns.count
