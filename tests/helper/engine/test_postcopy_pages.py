"""The order in which a postcopy sender sends pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.engine.postcopy_pages import PostcopyPages
from xen_save_helper.helper.hypervisors.interface import Bitmap

SIZE = 200


def dirty(*values: int) -> Bitmap:
    return Bitmap(pfn in values for pfn in range(SIZE))


def test_background_goes_on_behind_the_last_fault() -> None:
    send = PostcopyPages(dirty(*range(SIZE)))
    assert send.take_background(4).tolist() == [0, 1, 2, 3]
    assert send.fault([100, 50]) == 2
    assert [send.take_urgent(), send.take_urgent()] == [100, 50]
    assert send.take_background(4).tolist() == [51, 52, 53, 54]


def test_background_wraps_around() -> None:
    send = PostcopyPages(dirty(1, 2, 150, 199))
    send.fault([150])
    send.take_urgent()
    assert send.take_background(64).tolist() == [199]
    assert send.take_background(64).tolist() == [1, 2]
    assert send.remaining == 0


def test_a_fault_of_a_page_that_went_is_none_but_leads_the_way() -> None:
    send = PostcopyPages(dirty(*range(SIZE)))
    send.take_background(10)
    assert send.fault([5]) == 0
    assert send.take_background(2).tolist() == [10, 11]


def test_a_fault_that_the_guest_cannot_have() -> None:
    with pytest.raises(ValueError, match="0xc8"):
        PostcopyPages(dirty(*range(SIZE))).fault([3, SIZE])


@given(
    st.sets(st.integers(0, SIZE - 1)),
    st.lists(st.one_of(st.lists(st.integers(0, SIZE - 1), max_size=5), st.integers(1, 20))),
)
def test_each_page_goes_once_and_faulted_ones_in_turn(
    listed: set[int], steps: list[list[int] | int]
) -> None:
    send = PostcopyPages(dirty(*listed))
    left = set(listed)
    urgent: list[int] = []
    for step in steps:
        if isinstance(step, list):
            for pfn in step:
                if pfn in left and pfn not in urgent:
                    urgent.append(pfn)
            send.fault(step)
        elif urgent:
            pfn = send.take_urgent()
            assert pfn == urgent.pop(0)
            left.remove(pfn)
        else:
            pages = send.take_background(step).tolist()
            assert len(set(pages)) == len(pages) <= step
            assert bool(pages) == bool(left)
            assert set(pages) <= left
            left -= set(pages)
        assert send.remaining == len(left)
        assert send.urgent == len(urgent)
    for pfn in urgent:
        assert send.take_urgent() == pfn
        left.remove(pfn)
    while send.remaining:
        pages = send.take_background(64).tolist()
        assert pages
        assert set(pages) <= left
        left -= set(pages)
    assert not left


@given(st.sets(st.integers(0, SIZE - 1)), st.integers(0, SIZE), st.integers(1, SIZE))
def test_set_bits(bits: set[int], start: int, limit: int) -> None:
    found, position = set_bits(dirty(*bits), start, limit)
    ahead = sorted(bit for bit in bits if bit >= start)
    assert found.tolist() == ahead[:limit]
    assert position == (ahead[limit - 1] + 1 if len(ahead) >= limit else SIZE)


@given(
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 8)), min_size=1, max_size=8),
    st.integers(1, 600),
)
def test_set_bits_of_any_density(parts: list[tuple[int, int]], limit: int) -> None:
    """Parts of which no pfn is set, few, many or all."""
    bitmap = Bitmap()
    for size, eighths in parts:
        bitmap += bytes(pfn * 5 % 8 < eighths for pfn in range(size))
    expected = [pfn for pfn, bit in enumerate(bitmap) if bit]
    found: list[int] = []
    position = 0
    while position < len(bitmap):
        some, position = set_bits(bitmap, position, limit)
        assert len(some) == limit or position == len(bitmap)
        found += some
    assert found == expected
