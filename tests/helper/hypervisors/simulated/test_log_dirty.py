"""Log-dirty mode against a plain count of what was written, for any order of writes and looks."""

from __future__ import annotations

import mmap
import struct
from itertools import compress, count

from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.hypervisors.simulated.log_dirty import LogDirty

PAGES = (1 << 16) + 3000
"""More than are compared at once."""

_PFNS = st.one_of(
    st.integers(0, PAGES - 1), st.sampled_from([0, 1023, 1024, 65_535, 65_536, PAGES - 1])
)
_ROUNDS = st.lists(
    st.tuples(
        st.lists(_PFNS, max_size=5),
        st.lists(
            st.tuples(_PFNS, st.sampled_from([1, 2, 3, 1 << 8, 1 << 16, 1 << 24])), max_size=8
        ),
    ),
    max_size=5,
)


@given(grows=st.integers(0, 2500), begun=st.lists(_PFNS, max_size=3), rounds=_ROUNDS)
def test_what_is_dirty(
    grows: int, begun: list[int], rounds: list[tuple[list[int], list[tuple[int, int]]]]
) -> None:
    with mmap.mmap(-1, 4 * PAGES) as counters:
        values: dict[int, int] = {}

        def add(pfn: int, more: int) -> None:
            values[pfn] = (values.get(pfn, 0) + more) % (1 << 32)
            struct.pack_into("<I", counters, 4 * pfn, values[pfn])

        for pfn in begun:
            add(pfn, 1)
        log = LogDirty(counters, PAGES - grows)
        # Pages that came later count from nothing.
        before = {pfn: value for pfn, value in values.items() if pfn < PAGES - grows}
        for halves, writes in rounds:
            for pfn in halves:
                add(pfn, 1)
            for pfn, more in writes:
                add(pfn, more)
            dirty = Bitmap(b"\1" * PAGES)
            log.clean(dirty)
            assert set(compress(count(), dirty)) == {
                pfn for pfn, now in values.items() if now != before.get(pfn, 0) or now % 2
            }
            before = dict(values)
