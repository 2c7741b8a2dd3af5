"""The order in which a postcopy sender sends pages."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helper.page_stream import set_bits
from helper.postcopy_pages import POSTCOPY_BATCH, BackgroundShare, PostcopyPages

SIZE = 200


def pages(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def dirty(*values: int) -> np.ndarray:
    bitmap = np.zeros(SIZE, np.bool_)
    bitmap[list(values)] = True
    return bitmap


def test_background_goes_on_behind_the_last_fault() -> None:
    send = PostcopyPages(np.ones(SIZE, np.bool_))
    assert send.batch(4, 4).tolist() == [0, 1, 2, 3]
    assert send.fault(pages(100, 50)) == 2
    assert send.batch(6, 6).tolist() == [100, 50, 51, 52, 53, 54]


def test_background_wraps_around() -> None:
    send = PostcopyPages(dirty(1, 2, 150, 199))
    send.fault(pages(150))
    assert send.batch(64, 64).tolist() == [150, 199, 1, 2]
    assert send.remaining == 0


def test_a_fault_of_a_page_that_went_is_none_but_leads_the_way() -> None:
    send = PostcopyPages(np.ones(SIZE, np.bool_))
    send.batch(10, 10)
    assert send.fault(pages(5)) == 0
    assert send.batch(2, 2).tolist() == [10, 11]


def test_more_faults_than_a_batch_holds() -> None:
    send = PostcopyPages(np.ones(SIZE, np.bool_))
    send.fault(pages(*range(10, 80)))
    assert send.batch(64, 64).tolist() == list(range(10, 74))
    assert send.urgent == 6
    assert send.batch(64, 0).tolist() == list(range(74, 80))


def test_a_fault_that_the_guest_cannot_have() -> None:
    with pytest.raises(ValueError, match="0xc8"):
        PostcopyPages(np.ones(SIZE, np.bool_)).fault(pages(3, SIZE))


@given(
    st.sets(st.integers(0, SIZE - 1)),
    st.lists(
        st.one_of(
            st.lists(st.integers(0, SIZE - 1), max_size=5),
            st.tuples(st.integers(1, 20), st.integers(0, 20)),
        )
    ),
)
def test_each_page_goes_once_and_faulted_ones_go_first(
    listed: set[int], steps: list[list[int] | tuple[int, int]]
) -> None:
    send = PostcopyPages(dirty(*listed))
    left = set(listed)
    urgent: list[int] = []
    for step in steps:
        if isinstance(step, list):
            for pfn in step:
                if pfn in left and pfn not in urgent:
                    urgent.append(pfn)
            send.fault(pages(*step))
        else:
            limit, background = step
            batch = send.batch(limit, background).tolist()
            due = urgent[:limit]
            assert batch[: len(due)] == due
            del urgent[: len(due)]
            others = batch[len(due) :]
            free = left - set(urgent) - set(due)
            assert len(others) == min(limit - len(due), background, len(free))
            assert set(others) <= free
            assert len(set(batch)) == len(batch)
            left -= set(batch)
        assert send.remaining == len(left)
        assert send.urgent == len(urgent)
    while send.remaining:
        batch = send.batch(64, 64).tolist()
        assert batch
        assert set(batch) <= left
        left -= set(batch)
    assert not left


@given(st.sets(st.integers(0, SIZE - 1)), st.integers(0, SIZE), st.integers(1, SIZE))
def test_set_bits(bits: set[int], start: int, limit: int) -> None:
    found, position = set_bits(dirty(*bits), start, limit)
    ahead = sorted(bit for bit in bits if bit >= start)
    assert found.tolist() == ahead[:limit]
    assert position == (ahead[limit - 1] + 1 if len(ahead) >= limit else SIZE)


def test_in_calm_the_stream_alone_sets_the_pace() -> None:
    share = BackgroundShare()
    assert share.allowed(1.0, 0, True) == POSTCOPY_BATCH
    assert share.allowed(1.0, 0, False) == 0
    assert share.delay(1.0) == 0


def test_a_full_stream_at_a_fault_means_fewer_background_pages() -> None:
    def sent(full: bool) -> int:
        share = BackgroundShare()
        pages = 0
        for turn in range(50):
            now = 1 + 0.001 * turn
            assert share.allowed(now, 1, not full) == 0, "a faulted page goes alone"
            pages += share.allowed(now + 0.0005, 0, True)
        return pages

    assert 0 < sent(True) < sent(False) / 4


@given(st.lists(st.tuples(st.floats(0, 0.01), st.integers(0, 2), st.booleans()), max_size=50))
def test_background_pages_never_starve(turns: list[tuple[float, int, bool]]) -> None:
    share = BackgroundShare()
    now = 1.0
    for pause, urgent, writable in turns:
        now += pause
        assert 0 <= share.allowed(now, urgent, writable) <= POSTCOPY_BATCH
    now += share.delay(now) + 1e-6
    assert share.allowed(now, 0, True) > 0
