"""Which pages are hot, and how many of them go ahead."""

from __future__ import annotations

import pytest

from xen_save_helper.helper.engine.hot_pages import HotPages
from xen_save_helper.helper.hypervisors.interface import Bitmap

PAGES = 40_000
"""More than are counted at once."""


def bitmap(*pfns: int) -> Bitmap:
    made = Bitmap(PAGES)
    for pfn in pfns:
        made[pfn] = 1
    return made


def counted(*readings: tuple[int, ...]) -> HotPages:
    hot = HotPages(PAGES)
    for pfns in readings:
        hot.read(bitmap(*pfns))
    hot.sent(1000, 1.0)
    return hot


def test_hot_is_what_was_dirty_more_than_once_and_is_left() -> None:
    hot = counted((1, 2, 39_999), (2, 3, 39_999), (2, 20_000))
    choice = hot.choose(bitmap(1, 2, 3, 20_000, 39_999), 0, 1000)
    assert (choice.pfns.tolist(), choice.hot) == ([2, 39_999], 2)
    assert hot.choose(bitmap(1, 39_999), 0, 1000).pfns.tolist() == [39_999]


def test_the_hottest_go_first_and_the_lower_of_two() -> None:
    hot = counted((5, 6, 7, 8), (5, 6, 7, 8), (8,), (7, 8))
    choice = hot.choose(bitmap(5, 6, 7, 8), 0, 3)
    assert (choice.pfns.tolist(), choice.hot, choice.room) == ([8, 7, 5], 4, 3)


def test_pages_that_must_go_take_their_part_of_the_downtime() -> None:
    hot = counted((5, 6), (5, 6))
    assert hot.choose(bitmap(5, 6), 2, 3).pfns.tolist() == [5]
    assert hot.choose(bitmap(5, 6), 9, 3).pfns.tolist() == []


def test_without_a_round_that_tells_a_rate_none_goes() -> None:
    hot = HotPages(PAGES)
    for _ in range(2):
        hot.read(bitmap(1))
    hot.sent(255, 0.001)
    choice = hot.choose(bitmap(1), 0, 1000)
    assert (choice.pfns.tolist(), choice.hot, choice.room) == ([], 1, 0)
    assert choice.pages_per_second is None


def test_the_rate_is_that_of_the_last_round_that_tells_one() -> None:
    hot = counted()
    hot.sent(500, 0.25)
    hot.sent(3, 1.0)
    assert hot.choose(bitmap(), 0, 1000).pages_per_second == pytest.approx(2000)


def test_there_may_be_more_readings_than_are_counted() -> None:
    hot = counted(*[(3, 4)] * 254, *[(4,)] * 10)
    assert hot.choose(bitmap(3, 4, 5), 0, 1).pfns.tolist() == [4]
