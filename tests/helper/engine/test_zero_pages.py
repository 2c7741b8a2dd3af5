"""Pages of zeros are found whatever else is nearly so, and the rest stays as it was."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.engine.zero_pages import find_zero_pages, without
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE

places = st.none() | st.integers(0, PAGE_SIZE - 1)
"""Where a page has its only byte that is not 0."""


@given(views=st.lists(st.lists(places, min_size=1, max_size=70), min_size=1, max_size=4))
def test_all_pages_but_those_of_zeros(views: list[list[int | None]]) -> None:
    memory = []
    for pages in views:
        view = np.zeros((len(pages), PAGE_SIZE), np.uint8)
        for page, place in enumerate(pages):
            if place is not None:
                view[page, place] = 1 + page
        memory.append(memoryview(view.ravel()).cast("B").toreadonly())
    expected = [place is None for pages in views for place in pages]
    zero = find_zero_pages(memory)
    assert zero.tolist() == expected
    whole = b"".join(memory)
    kept = b"".join(
        whole[page * PAGE_SIZE : (page + 1) * PAGE_SIZE]
        for page, is_zero in enumerate(expected)
        if not is_zero
    )
    assert b"".join(without(memory, zero)) == kept
