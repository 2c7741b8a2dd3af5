"""Arrays of pfns and their runs, against what a loop over numbers says."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.streams.pfns import (
    highest,
    is_run,
    pfns_of,
    run_of,
    runs_of,
    selected,
)

MAX_PFN = (1 << 52) - 1
FIRST = st.sampled_from([0, 0xFF, 0xFFF0, 0xFFFF, 1 << 16, (1 << 20) - 3, 1 << 32, MAX_PFN - 5000])
PIECES = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=6)
"""Runs that may touch or overlap: first and count."""


@given(FIRST, st.integers(0, 40), st.sampled_from([0, 1, 2, 511, 512, 1024, 4900]))
def test_a_run_is_its_numbers(start: int, more: int, count: int) -> None:
    numbers = range(start + more, start + more + count)
    assert run_of(numbers.start, count).tolist() == [*numbers]


def test_a_long_run() -> None:
    assert run_of(0xFF00, 3 << 16).tolist() == [*range(0xFF00, 0xFF00 + (3 << 16))]


@given(PIECES)
def test_runs_put_together_are_the_pfns(pieces: list[tuple[int, int]]) -> None:
    pfns = pfns_of(pfn for first, count in pieces for pfn in range(first, first + count))
    runs = list(runs_of(pfns))
    joined = [pfn for first, count, _ in runs for pfn in range(first, first + count)]
    assert joined == pfns.tolist()
    assert [place for _, _, place in runs] == [
        sum(count for _, count, _ in runs[:index]) for index in range(len(runs))
    ]
    for (first, count, _), (following, _, _) in pairwise(runs):
        assert following != first + count
    if pfns:
        assert is_run(pfns) == (len(runs) == 1)
        assert highest(pfns) == max(pfns)


@pytest.mark.parametrize("pfns", [[5, 4], [5, 7, 6, 8], [5, 5], [5, 7], [5, 6, 6, 8]])
def test_what_is_no_run(pfns: list[int]) -> None:
    assert not is_run(pfns_of(pfns))


@given(st.lists(st.tuples(st.integers(0, 1 << 52), st.booleans())))
def test_a_mask_selects(chosen: list[tuple[int, bool]]) -> None:
    pfns = pfns_of(pfn for pfn, _ in chosen)
    mask = bytes(there for _, there in chosen)
    assert selected(pfns, mask).tolist() == [pfn for pfn, there in chosen if there]
