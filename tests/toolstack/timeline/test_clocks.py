from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.toolstack.timeline.traces import precopy
from xen_save_helper.toolstack.timeline.clocks import Offset, Seen, align, bounds
from xen_save_helper.toolstack.timeline.model import draw
from xen_save_helper.toolstack.timeline.operations import offset_of

OFFSETS = st.floats(-1e6, 1e6)
ROUNDING = 1e-6


@given(
    offset=OFFSETS,
    messages=st.lists(
        st.tuples(st.floats(0, 1e4), st.floats(0, 10), st.booleans()), min_size=1, max_size=20
    ),
)
def test_the_true_offset_lies_within_what_is_said(
    offset: float, messages: list[tuple[float, float, bool]]
) -> None:
    seen = []
    for said, delay, outward in messages:
        ours, theirs = (said, said + delay) if outward else (said + delay, said)
        seen.append(Seen("it", ours, theirs + offset, outward))
    found = bounds(seen)
    assert found.low - ROUNDING <= offset <= found.high + ROUNDING
    if {outward for *_, outward in messages} == {True, False}:
        alignment = align(found, None)
        assert alignment.sure
        assert abs(alignment.offset - offset) <= alignment.error + ROUNDING
        assert alignment.error <= max(delay for _, delay, _ in messages) + ROUNDING
    else:
        assert not found.bounded
        assert align(found, None).error == math.inf


@given(offset=OFFSETS, delay=st.floats(0, 0.1))
def test_it_holds_for_the_traces_of_a_whole_migration(offset: float, delay: float) -> None:
    operation = precopy(offset, delay).operation()
    assert operation.source is not None
    assert operation.destination is not None
    found = offset_of(operation.source, operation.destination)
    alignment = align(found, None)
    assert abs(alignment.offset - offset) <= alignment.error + ROUNDING
    assert alignment.error <= delay + ROUNDING
    # Nothing is heard before it was said, but for the error.
    for message in draw(operation).messages:
        assert message.heard - message.said >= -2 * (alignment.error + ROUNDING)


@given(wall=st.floats(-100, 100), high=st.floats(-100, 100))
def test_the_times_of_day_decide_only_what_is_open(wall: float, high: float) -> None:
    alignment = align(Offset(-math.inf, high, highest="the headers"), wall)
    assert alignment.offset == min(wall, high)
    assert not alignment.sure
    assert "the headers" in alignment.how
    both = align(Offset(1.0, 2.0, "a", "b"), wall)
    assert both.offset == 1.5
    assert both.error == 0.5
    assert both.sure


def test_clocks_that_ran_apart_are_told_of() -> None:
    found = bounds([Seen("GO", 0.0, 10.0, True), Seen("the report", 5.0, 15.002, False)])
    assert found.contradictory
    alignment = align(found, None)
    assert "contradict each other by 2 ms" in alignment.how
    assert alignment.error == pytest.approx(0.001)


def test_what_nobody_saw_aligns_nothing() -> None:
    alignment = align(bounds([]), None)
    assert alignment.error == math.inf
    assert "not at all" in alignment.how
    with pytest.raises(ValueError, match="without bounds"):
        _ = bounds([]).middle
