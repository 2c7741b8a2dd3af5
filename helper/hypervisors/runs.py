"""Runs of neighbouring pfns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from xen_save_helper.helper.hypervisors.interface import Pfns

_SHORT: Final = 64
"""Up to this many, a loop over the pfns is faster than numpy."""


def runs_of(pfns: Pfns) -> Iterator[tuple[int, int, int]]:
    """(first pfn, count, index of the first in `pfns`) of each run of neighbours, in order."""
    if len(pfns) > _SHORT:
        breaks = np.flatnonzero(np.diff(pfns.astype(np.int64)) != 1) + 1
        starts = np.concatenate(([0], breaks))
        ends = np.concatenate((breaks, [len(pfns)]))
        yield from zip(
            pfns[starts].tolist(), (ends - starts).tolist(), starts.tolist(), strict=True
        )
        return
    if not len(pfns):
        return
    first = expected = int(pfns[0])
    start = 0
    for place, pfn in enumerate(pfns.tolist()):
        if pfn != expected:
            yield first, place - start, start
            first, start = pfn, place
        expected = pfn + 1
    yield first, len(pfns) - start, start
