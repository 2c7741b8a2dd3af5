"""The plan: what fits where, in which order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.toolstack.evacuation.plan import (
    Guest,
    Place,
    Plan,
    Rooms,
    expected_seconds,
    make_plan,
)

MIB = 1 << 20


def guest(name: str, mib: int, *, dirty: float | None = None, obstacle: str = "") -> Guest:
    return Guest(name, 1, mib * MIB, dirty, obstacle)


def where(plan: Plan) -> dict[str, str]:
    return {move.guest.name: move.place for move in plan.moves}


names = st.text("abcdefgh", min_size=1, max_size=3)
guests = st.lists(
    st.builds(
        Guest,
        name=names,
        domid=st.integers(1, 99),
        memory=st.integers(1, 64).map(lambda mib: mib * MIB),
        dirty_rate=st.none() | st.floats(0, 1e9) | st.just(float("inf")),
        obstacle=st.sampled_from(["", "", "", "is paused"]),
    ),
    unique_by=lambda one: one.name,
    max_size=12,
)
places = st.lists(
    st.builds(
        Place,
        name=st.sampled_from(["/a", "/b", "ssh c", "/d"]),
        free=st.none() | st.integers(0, 256).map(lambda mib: mib * MIB),
        objections=st.dictionaries(names, st.just("taken"), max_size=4),
    ),
    unique_by=lambda one: one.name,
    min_size=1,
    max_size=4,
)


@given(guests, places)
def test_each_guest_is_planned_once_and_no_destination_gets_more_than_it_has(
    guests: list[Guest], places: list[Place]
) -> None:
    plan = make_plan(guests, places)
    planned = [move.guest for move in plan.moves] + [stay.guest for stay in plan.stays]
    assert sorted(planned, key=lambda one: one.name) == sorted(guests, key=lambda one: one.name)
    by_name = {place.name: place for place in places}
    for place in places:
        taken = sum(move.guest.memory for move in plan.moves if move.place == place.name)
        assert place.free is None or taken <= place.free
        assert plan.rooms().taken(place.name) == taken
    for move in plan.moves:
        assert not move.guest.obstacle
        assert move.guest.name not in by_name[move.place].objections
    for stay in plan.stays:
        assert stay.reason


@given(guests, places, st.randoms())
def test_the_order_in_which_guests_are_listed_makes_no_other_plan(
    guests: list[Guest], places: list[Place], random: object
) -> None:
    plan = make_plan(guests, places)
    random.shuffle(guests)  # type: ignore[attr-defined]
    assert make_plan(guests, places) == plan


@given(guests, places)
def test_who_stays_for_want_of_room_would_fit_nowhere_in_what_is_left(
    guests: list[Guest], places: list[Place]
) -> None:
    plan = make_plan(guests, places)
    rooms = plan.rooms()
    for stay in plan.stays:
        assert stay.guest.obstacle or not rooms.choices(stay.guest)


def test_guests_are_spread_over_the_destinations() -> None:
    four = [guest(f"g{index}", 8) for index in range(4)]
    plan = make_plan(four, [Place("/a", 64 * MIB), Place("ssh b")])
    assert sorted(where(plan).values()) == ["/a", "/a", "ssh b", "ssh b"]


def test_guests_are_packed_if_spreading_them_leaves_one_without_a_place() -> None:
    """Spread, the small ones would take from each the room that the large one needs."""
    three = [guest("large", 30), guest("s1", 20), guest("s2", 20)]
    plan = make_plan(three, [Place("/a", 50 * MIB), Place("/b", 20 * MIB)])
    assert where(plan) == {"large": "/a", "s1": "/b", "s2": "/a"}
    assert not plan.stays


def test_a_guest_too_large_for_each_is_told_what_is_left_there() -> None:
    plan = make_plan([guest("g", 48)], [Place("/a", 32 * MIB), Place("/b", 0)])
    (stay,) = plan.stays
    assert stay.reason == (
        "/a: no room for 48 MiB: 32 MiB are left; /b: no room for 48 MiB: 0 MiB are left"
    )


def test_the_smallest_expected_time_is_first_and_what_is_ordered_before_that() -> None:
    calm = guest("calm", 32)
    busy = guest("busy", 16, dirty=float("inf"))
    tiny = guest("tiny", 4)
    place = [Place("/a")]
    plan = make_plan([busy, calm, tiny], place)
    assert [move.guest.name for move in plan.moves] == ["tiny", "calm", "busy"]
    plan = make_plan([busy, calm, tiny], place, order=["busy"])
    assert [move.guest.name for move in plan.moves] == ["busy", "tiny", "calm"]
    with pytest.raises(ValueError, match="there is no guest 'other'"):
        make_plan([calm], place, order=["other"])


def test_the_expected_time_is_that_of_the_rounds() -> None:
    rate = 100.0
    assert expected_seconds(Guest("g", 1, 1000), rate, 5) == 10
    # Half as fast as the link: 1000 + 500 + 250 bytes, whatever the last of them leaves dirty.
    assert expected_seconds(Guest("g", 1, 1000, 50.0), rate, 2) == 17.5
    # Never more than all its memory a round.
    assert expected_seconds(Guest("g", 1, 1000, float("inf")), rate, 2) == 30


def test_room_that_is_not_there_is_not_given_away() -> None:
    rooms = Rooms([Place("/a", 8 * MIB)])
    rooms.take(guest("one", 8), "/a")
    with pytest.raises(ValueError, match="two at /a: no room for 1 MiB: 0 MiB are left"):
        rooms.take(guest("two", 1), "/a")
    rooms.give_back(guest("one", 8), "/a")
    assert rooms.roomiest(guest("two", 1)) == "/a"
    assert rooms.roomiest(guest("two", 1), tried=["/a"]) is None
