"""Sets of pfns as bitmaps, beside Python's own sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.engine.bitmaps import add, intersection, move, without
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.streams.pfns import pfns_of

SIZE = 3 * (1 << 14) + 5
"""More than is worked on at once, and no multiple of it."""
SETS = st.sets(st.integers(0, SIZE - 1) | st.integers(1 << 14, (1 << 14) + 40))


def bitmap(pfns: set[int]) -> Bitmap:
    made = Bitmap(SIZE)
    for pfn in pfns:
        made[pfn] = 1
    return made


@given(SETS, SETS)
def test_they_are_sets(one: set[int], other: set[int]) -> None:
    assert intersection(bitmap(one), bitmap(other)) == bitmap(one & other)
    assert without(bitmap(one), bitmap(other)) == bitmap(one - other)
    both = bitmap(other)
    add(bitmap(one), both)
    assert both == bitmap(one | other)


@given(SETS, SETS, st.data())
def test_pages_are_moved(one: set[int], other: set[int], data: st.DataObject) -> None:
    moved = data.draw(st.sets(st.sampled_from(sorted(one)))) if one else set()
    source, to = bitmap(one), bitmap(other)
    move(pfns_of(sorted(moved)), source, to)
    assert (source, to) == (bitmap(one - moved), bitmap(other | moved))
