"""Runs of neighbouring pfns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from helper.hypervisors.interface import Pfns


def runs_of(pfns: Pfns, places: NDArray[np.intp] | None = None) -> Iterator[tuple[int, int, int]]:
    """(first pfn, count, place in `pfns` of the first) of each run of neighbours, in order.

    With `places`, of the pfns at these places alone; a run has neighbours in both.
    """
    if places is None:
        places = np.arange(len(pfns))
    if not len(places):
        return
    some = pfns[places].astype(np.int64)
    breaks = np.flatnonzero((np.diff(some) != 1) | (np.diff(places) != 1)) + 1
    starts = np.concatenate(([0], breaks))
    ends = np.concatenate((breaks, [len(places)]))
    yield from zip(
        some[starts].tolist(), (ends - starts).tolist(), places[starts].tolist(), strict=True
    )
