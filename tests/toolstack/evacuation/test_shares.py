"""Bandwidth by weight: never more than there is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.toolstack.evacuation.shares import Shares

weights = st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 100), max_size=6)


@given(
    st.integers(10_000, 1 << 40),
    weights,
    st.integers(1, 6),
    st.booleans(),
    st.lists(st.sampled_from(["begin", "end first", "end last"]), max_size=20),
)
def test_those_under_way_never_have_more_than_all(
    total: int, weights: dict[str, float], jobs: int, adjustable: bool, steps: list[str]
) -> None:
    shares = Shares(total, weights, adjustable=adjustable)
    waiting = list("abcdef")
    for step in steps:
        held = [*shares.held]
        if step == "begin" and waiting and len(held) < jobs:
            soon = waiting[1 : jobs - len(held)]
            assert shares.begin(waiting.pop(0), soon) >= 1
        elif step != "begin" and held:
            shares.end(held[0 if step == "end first" else -1])
        assert sum(shares.held.values()) <= total


def test_those_that_begin_together_share_by_weight() -> None:
    shares = Shares(100, {"db": 3})
    assert shares.begin("web", ["db", "mail"]) == 20
    assert shares.begin("db", ["mail"]) == 60
    assert shares.begin("mail") == 20
    shares.end("db")
    assert shares.begin("next") == 60


def test_adjustable_shares_are_shared_out_anew_each_time() -> None:
    shares = Shares(100, {"db": 3}, adjustable=True)
    assert shares.begin("web", ["db"]) == 100
    assert shares.begin("db") == 75
    assert shares.held == {"web": 25, "db": 75}
    shares.end("db")
    assert shares.held == {"web": 100}
    shares.end("web")
    assert shares.held == {}


def test_without_a_limit_there_is_nothing_to_share() -> None:
    shares = Shares(0, {})
    assert shares.begin("web") == 0
    assert shares.held == {}


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_a_weight_is_above_0(weight: float) -> None:
    with pytest.raises(ValueError, match="weight of 'web': want a number above 0"):
        Shares(100, {"web": weight})
