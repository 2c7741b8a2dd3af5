"""Many pfns at once: arrays, and the runs of neighbours in them.

A batch of a save is a thousand pfns, and nearly always one run. What is done with them here is done
by the interpreter's own loops over arrays and bytes, since numpy takes longer to import than a
small guest takes to save.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import compress, pairwise

from xen_save_helper.ipc_schema.hints import TYPE_CHECKING, Final

if TYPE_CHECKING:
    Pfns = array[int]
    """Of typecode Q: 64 bits each, in this machine's order, which is little-endian wherever Xen
    runs."""
else:
    Pfns = array


_SIZE: Final = 8
_BLOCK: Final = 1 << 16


def pfns_of(pfns: Iterable[int] = ()) -> Pfns:
    """An array of these pfns. Raises OverflowError for what does not fit in 64 bits."""
    return array("Q", pfns)


def run_of(first: int, count: int) -> Pfns:
    """`count` neighbours from `first` on, ten times as fast as from a range."""
    pfns = pfns_of()
    end = first + count
    while first < end:
        block, low = divmod(first, _BLOCK)
        high = min(_BLOCK, low + end - first)
        part = bytearray(_low_octets()[low * _SIZE : high * _SIZE])
        for place, octet in enumerate(block.to_bytes(_SIZE - 2, "little"), 2):
            if octet:
                part[place::_SIZE] = bytes([octet]) * (high - low)
        pfns.frombytes(part)
        first += high - low
    return pfns


@cache
def _low_octets() -> memoryview:
    """All pfns of two octets."""
    octets = bytearray(_BLOCK * _SIZE)
    octets[0::_SIZE] = bytes(range(256)) * 256
    octets[1::_SIZE] = b"".join(bytes([octet]) * 256 for octet in range(256))
    return memoryview(octets).toreadonly()


def selected(pfns: Pfns, mask: bytes | bytearray) -> Pfns:
    """Those of `pfns` whose octet in `mask`, which is as long, is 1; the others are 0. A mask is
    mostly one run of ones, or has none."""
    first, end = mask.find(1), mask.rfind(1) + 1
    if not end:
        return pfns_of()
    part, chosen = pfns[first:end], mask[first:end]
    return array("Q", compress(part, chosen)) if 0 in chosen else part


def is_run(pfns: Pfns) -> bool:
    """Whether `pfns`, at least one, are neighbours in ascending order."""
    first, count = pfns[0], len(pfns)
    return count == 1 or (pfns[-1] - first == count - 1 and pfns == run_of(first, count))


def highest(pfns: Pfns) -> int:
    """The highest of `pfns`, at least one."""
    return pfns[-1] if is_run(pfns) else max(pfns)


def runs_of(pfns: Pfns) -> Iterator[tuple[int, int, int]]:
    """(first pfn, count, index of the first in `pfns`) of each run of neighbours, in order."""
    if not pfns:
        return
    if is_run(pfns):
        yield pfns[0], len(pfns), 0
        return
    start = 0
    for place, (before, pfn) in enumerate(pairwise(pfns), 1):
        if pfn != before + 1:
            yield pfns[start], place - start, start
            start = place
    yield pfns[start], len(pfns) - start, start
