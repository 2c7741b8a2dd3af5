"""Sets of pfns as bitmaps: an octet for each pfn, 1 or 0.

All of it works on the parts in which something is set, as large integers: most of a guest's address
space is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.pfns import Pfns

_AT_ONCE: Final = 1 << 14


def add(more: Bitmap, bitmap: Bitmap) -> None:
    """Set in `bitmap` what is set in `more`."""
    for part in _parts(more):
        bitmap[part] = _both(int.__or__, bitmap[part], more[part])


def intersection(one: Bitmap, other: Bitmap) -> Bitmap:
    """What is set in both, which are equally long."""
    found = Bitmap(len(one))
    for part in _parts(one):
        found[part] = _both(int.__and__, one[part], other[part])
    return found


def without(bitmap: Bitmap, less: Bitmap) -> Bitmap:
    """What is set in `bitmap` and not in `less`, which are equally long."""
    found = Bitmap(len(bitmap))
    for part in _parts(bitmap):
        here = bitmap[part]
        less_here = Bitmap(_both(int.__and__, here, less[part]))
        found[part] = _both(int.__xor__, here, less_here)
    return found


def move(pfns: Pfns, source: Bitmap, to: Bitmap) -> None:
    """Set `pfns` in `to` instead of in `source`."""
    for pfn in pfns:
        source[pfn], to[pfn] = 0, 1


def _parts(bitmap: Bitmap) -> Iterator[slice]:
    start = 0
    while (start := bitmap.find(1, start)) >= 0:
        yield slice(start, start + _AT_ONCE)
        start += _AT_ONCE


def _both(operation: Callable[[int, int], int], one: Bitmap, other: Bitmap) -> bytes:
    found = operation(int.from_bytes(one, "little"), int.from_bytes(other, "little"))
    return found.to_bytes(len(one), "little")
