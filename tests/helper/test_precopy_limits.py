from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import (
    LIBXENGUEST_PRECOPY,
    PAGE_BYTES,
    PrecopyLimits,
    PrecopyRounds,
    decide,
)

GO_ON = PrecopyPolicy.CONTINUE_PRECOPY
STOP = PrecopyPolicy.STOP_AND_COPY
ABORT = PrecopyPolicy.ABORT

UNKNOWN = -1
chosen = LIBXENGUEST_PRECOPY._replace
NUMBERS = st.integers(1, 50)
LIMITS = st.builds(PrecopyLimits, NUMBERS, NUMBERS, st.none() | NUMBERS, st.none() | NUMBERS)


@pytest.mark.parametrize(
    ("limits", "iteration", "dirty_count", "rate", "policy", "why"),
    [
        (LIBXENGUEST_PRECOPY, 0, 1000, None, GO_ON, "0 rounds, dirty: 1000 pages"),
        (LIBXENGUEST_PRECOPY, 4, UNKNOWN, 1.0, GO_ON, "4 rounds, dirty: not known yet"),
        (LIBXENGUEST_PRECOPY, 5, UNKNOWN, 1.0, STOP, "5 rounds, at most 5"),
        (LIBXENGUEST_PRECOPY, 2, 49, 1.0, STOP, "49 dirty pages, at most 49 wanted"),
        (LIBXENGUEST_PRECOPY, 2, 50, 1.0, GO_ON, ""),
        (chosen(max_rounds=1), 1, UNKNOWN, 1.0, STOP, "1 rounds, at most 1"),
        (chosen(dirty_threshold=0), 2, 1, 1.0, GO_ON, ""),
        (
            chosen(dirty_threshold=0),
            2,
            0,
            1.0,
            STOP,
            "0 dirty pages, at most 0 wanted",
        ),
        (
            chosen(max_downtime_ms=100),
            2,
            250,
            PAGE_BYTES * 2500,
            STOP,
            "250 dirty pages take 100 ms, at most 100 wanted",
        ),
        (chosen(max_downtime_ms=99), 2, 250, PAGE_BYTES * 2500, GO_ON, ""),
        (chosen(max_downtime_ms=99), 2, 250, None, GO_ON, ""),
        (chosen(abort_after=8), 7, 900, 1.0, GO_ON, ""),
        (
            chosen(abort_after=8),
            8,
            UNKNOWN,
            1.0,
            GO_ON,
            "dirty: not known yet",
        ),
        (
            chosen(abort_after=8),
            8,
            900,
            1.0,
            ABORT,
            "900 pages are dirty after 8 rounds, the last allowed",
        ),
        (chosen(abort_after=8), 8, 20, 1.0, STOP, "20 dirty pages"),
        (
            chosen(max_downtime_ms=100, abort_after=8),
            8,
            900,
            PAGE_BYTES * 9000,
            STOP,
            "take 100 ms",
        ),
    ],
)
def test_each_limit_decides(
    limits: PrecopyLimits,
    iteration: int,
    dirty_count: int,
    rate: float | None,
    policy: PrecopyPolicy,
    why: str,
) -> None:
    decision = decide(limits, iteration, dirty_count, rate)
    assert decision.policy is policy
    assert why in decision.why


@given(
    LIMITS,
    st.integers(1, 10_000_000),
    st.floats(1, 1e12),
)
def test_no_policy_goes_on_for_ever(limits: PrecopyLimits, dirty_count: int, rate: float) -> None:
    last = limits.abort_after or limits.max_rounds
    assert decide(limits, last, dirty_count, rate).policy is not GO_ON


@given(LIMITS, st.integers(0, 100))
def test_nothing_dirty_is_the_end(limits: PrecopyLimits, iteration: int) -> None:
    assert decide(limits, iteration, 0, None).policy is STOP


class Link:
    """A stream and a clock: the bytes that it has taken, and the time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent = 12345

    def send(self, size: int, seconds: float) -> None:
        self.sent += size
        self.now += seconds


def rounds_on(link: Link, **limits: int) -> PrecopyRounds:
    return PrecopyRounds(chosen(**limits), lambda: link.sent, lambda: link.now)


def test_the_rate_is_that_of_the_last_round() -> None:
    link = Link()
    rounds = rounds_on(link, max_downtime_ms=1000)
    assert rounds.ask(0, 100_000).policy is GO_ON
    assert rounds.bytes_per_second is None
    link.send(400_000_000, 4.0)
    assert rounds.ask(1, UNKNOWN).policy is GO_ON
    assert rounds.bytes_per_second == 100_000_000
    link.now += 50.0  # time between rounds does not count
    decision = rounds.ask(1, 30_000)
    assert (decision.policy, decision.why) == (GO_ON, "1 rounds, dirty: 30000 pages")
    link.send(100_000_000, 0.5)
    assert rounds.ask(2, UNKNOWN).policy is GO_ON
    assert rounds.bytes_per_second == 200_000_000
    decision = rounds.ask(2, 30_000)
    assert decision.policy is STOP
    assert decision.why == "30000 dirty pages take 616 ms, at most 1000 wanted"


def test_the_first_round_counts_of_an_engine_that_does_not_ask_before_it() -> None:
    link = Link()
    rounds = rounds_on(link, max_downtime_ms=1000)
    rounds.ask(0, UNKNOWN)
    link.send(400_000_000, 4.0)
    rounds.ask(0, UNKNOWN)
    assert rounds.bytes_per_second == 100_000_000


def test_a_round_that_fits_in_a_buffer_tells_no_rate() -> None:
    link = Link()
    rounds = rounds_on(link, max_downtime_ms=1000)
    rounds.ask(0, 100_000)
    link.send(40_000_000, 4.0)
    rounds.ask(1, UNKNOWN)
    rounds.ask(1, 60_000)
    link.send(200_000, 0.000_01)
    rounds.ask(2, UNKNOWN)
    assert rounds.bytes_per_second == 10_000_000
