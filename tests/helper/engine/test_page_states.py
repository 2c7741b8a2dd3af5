"""The states of a postcopy page, against their description in the postcopy series."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.engine.page_states import (
    TRANSITIONS,
    PageEvent,
    PageState,
    PageStateError,
    PageStates,
)
from xen_save_helper.ipc_schema.streams.pfns import Pfns, pfns_of

SIZE = 16


def pages(*values: int) -> Pfns:
    return pfns_of(values)


def in_state(state: PageState) -> PageStates:
    """States with page 3 in `state`."""
    states = PageStates(SIZE)
    ways = {
        PageState.INVALID: [],
        PageState.OUTSTANDING: [PageEvent.LISTED],
        PageState.REQUESTED: [PageEvent.LISTED, PageEvent.FAULTED],
        PageState.READY: [PageEvent.LISTED, PageEvent.ARRIVED],
        PageState.DROPPED: [PageEvent.LISTED, PageEvent.RELEASED],
    }
    for event in ways[state]:
        states.happens(event, pages(3))
    assert states.of(3) is state
    return states


@pytest.mark.parametrize("state", PageState)
@pytest.mark.parametrize("event", PageEvent)
def test_every_event_in_every_state(state: PageState, event: PageEvent) -> None:
    for way in ("one", "many"):
        states = in_state(state)
        pending = states.pending
        following = TRANSITIONS.get((state, event))
        if following is None:
            with pytest.raises(PageStateError, match="pfn 0x3 is"):
                states.happens_to(event, 3) if way == "one" else states.happens(event, pages(3))
            assert states.of(3) is state
            assert states.pending == pending
        else:
            if way == "one":
                assert states.happens_to(event, 3) is state
            else:
                assert states.happens(event, pages(3)) == bytes([state])
            assert states.of(3) is following


@pytest.mark.parametrize(
    ("state", "event"),
    [
        (PageState.INVALID, PageEvent.ARRIVED),
        (PageState.READY, PageEvent.ARRIVED),
        (PageState.OUTSTANDING, PageEvent.LISTED),
        (PageState.INVALID, PageEvent.FAULTED),
        (PageState.INVALID, PageEvent.RELEASED),
    ],
)
def test_the_documented_errors(state: PageState, event: PageEvent) -> None:
    assert (state, event) not in TRANSITIONS


def test_a_page_that_arrives_after_its_release_is_passed_over() -> None:
    assert TRANSITIONS[PageState.DROPPED, PageEvent.ARRIVED] is PageState.DROPPED


def test_one_wrong_page_spoils_none_of_the_others() -> None:
    states = PageStates(SIZE)
    states.happens(PageEvent.LISTED, pages(1, 2))
    with pytest.raises(PageStateError, match="pfn 0x7 is invalid and was arrived"):
        states.happens(PageEvent.ARRIVED, pages(1, 7, 2))
    assert states.pending == 2


def test_a_page_that_is_listed_twice_at_once() -> None:
    states = PageStates(SIZE)
    with pytest.raises(PageStateError, match="pfn 0x5"):
        states.happens(PageEvent.LISTED, pages(5, 1, 5))
    assert states.pending == 0


@pytest.mark.parametrize("pfn", [SIZE, 2**52 - 1])
def test_a_page_out_of_range(pfn: int) -> None:
    states = PageStates(SIZE)
    with pytest.raises(PageStateError):
        states.happens(PageEvent.LISTED, pages(1, pfn))
    with pytest.raises(PageStateError):
        states.happens_to(PageEvent.FAULTED, pfn)


@given(st.lists(st.tuples(st.sampled_from(PageEvent), st.integers(0, SIZE - 1), st.booleans())))
def test_pending_counts_what_is_still_to_come(
    events: list[tuple[PageEvent, int, bool]],
) -> None:
    states = PageStates(SIZE)
    model = [PageState.INVALID] * SIZE
    for event, pfn, one in events:
        following = TRANSITIONS.get((model[pfn], event))
        try:
            states.happens_to(event, pfn) if one else states.happens(event, pages(pfn))
        except PageStateError:
            assert following is None
        else:
            assert following is not None
            model[pfn] = following
    assert [states.of(pfn) for pfn in range(SIZE)] == model
    waited = (PageState.OUTSTANDING, PageState.REQUESTED)
    assert states.pending == sum(state in waited for state in model)
