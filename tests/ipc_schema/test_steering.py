"""What is answered to those who ask, by the board and the rounds: no process, no socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.board import AS_ASKED, Board, Word
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.channel.precopy_rule import (
    LIBXL_PRECOPY,
    PAGE_BYTES,
    PrecopyLimits,
    PrecopyRounds,
)
from xen_save_helper.ipc_schema.control import PARAMETERS, Ask, Identity, Role
from xen_save_helper.ipc_schema.operation_status import MigrationStatus, OperationStatus
from xen_save_helper.ipc_schema.steering import Steering
from xen_save_helper.ipc_schema.streams.phases import Phase, Stage
from xen_save_helper.ipc_schema.trace import Trace

ME: Final = Identity(Role.MIGRATE, 7, "web", 4711)
THERE: Final = ME._replace(role=Role.RECEIVE)


class Operation:
    """A live migration with a clock of the test's."""

    def __init__(self, *, saving: bool = True, live: bool = True, postcopy: bool = True) -> None:
        self.now = 100.0
        self.cancelled = 0
        self.too_late = ""
        self.steered: list[tuple[Ask, Mapping[str, object]]] = []
        self.traced: list[dict[str, Any]] = []
        self.board = Board()
        self.board.engine = Engine.OWN
        self.steering = Steering(
            self.board,
            ME if saving else THERE,
            Trace("controller", lambda line: self.traced.append(json.loads(line))),
            cancel=self._cancel,
            too_late=lambda: self.too_late,
            step=lambda: "wait for the receiver",
            steered=lambda ask, fields: self.steered.append((ask, fields)),
            clock=lambda: self.now,
        )
        self.rounds = PrecopyRounds(LIBXL_PRECOPY, lambda: 0, self.steering.sending_clock)
        self.steering.live, self.steering.postcopy = live, postcopy
        if live and saving:
            self.steering.rounds = self.rounds
        elif not live:
            self.steering.no_rounds = "no precopy"

    def _cancel(self) -> None:
        self.cancelled += 1

    def ask(self, what: Ask, **fields: Any) -> Mapping[str, Any]:
        return self.steering.answer(what, {"ask": what.value, **fields})

    @property
    def status(self) -> OperationStatus:
        return OperationStatus.decode(json.loads(json.dumps(self.ask(Ask.STATUS))))

    def refuses(self, why: str, what: Ask, **fields: Any) -> None:
        with pytest.raises(OSError, match=why):
            self.ask(what, **fields)
        assert self.steered == []
        assert self.rounds.limits == LIBXL_PRECOPY
        assert self.board.ints[Word.BANDWIDTH] == AS_ASKED
        assert not self.board.paused


def test_what_is_set_is_followed() -> None:
    operation = Operation()
    told = operation.ask(Ask.SET, bandwidth=1000, max_downtime=300, max_rounds=8)
    assert told == {
        "bandwidth": 1000, "max_downtime": 300, "max_rounds": 8, "abort_after": None,
        "dirty_threshold": 50,
    }  # fmt: skip
    assert operation.board.ints[Word.BANDWIDTH] == 1000
    assert operation.board.ints[Word.MAX_DOWNTIME] == 300
    assert operation.rounds.limits == PrecopyLimits(50, 8, 300, None)
    operation.ask(Ask.SET, abort_after=9)
    assert operation.rounds.ask(8, 900).policy is PrecopyPolicy.CONTINUE_PRECOPY
    assert operation.rounds.ask(9, 900).policy is PrecopyPolicy.ABORT
    assert [ask for ask, _ in operation.steered] == [Ask.SET, Ask.SET]
    (*_, told) = operation.traced
    assert (told["event"], told["ask"]) == ("control", "set")
    assert told["fields"] == {"abort_after": 9}


def test_a_helper_is_told_of_a_downtime_only_if_that_is_set() -> None:
    operation = Operation()
    operation.ask(Ask.SET, max_rounds=8)
    assert operation.board.ints[Word.MAX_DOWNTIME] == AS_ASKED
    operation.ask(Ask.SET, max_downtime=2**64 - 1)
    assert operation.rounds.limits.max_downtime_ms == 2**64 - 1
    assert operation.board.ints[Word.MAX_DOWNTIME] == 2**63 - 1
    operation.ask(Ask.SET, max_downtime=0)
    assert operation.board.ints[Word.MAX_DOWNTIME] == 0


def test_rounds_that_are_set_take_the_place_of_an_abort() -> None:
    operation = Operation()
    operation.ask(Ask.SET, abort_after=2)
    operation.ask(Ask.SET, max_rounds=1)
    assert operation.rounds.ask(2, 900).policy is PrecopyPolicy.STOP_AND_COPY


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "want one or more of bandwidth"),
        ({"speed": 1}, "unknown parameter 'speed'"),
        ({"bandwidth": -1}, "bandwidth -1"),
        ({"bandwidth": "1M"}, "bandwidth '1M'"),
        ({"bandwidth": True}, "bandwidth True"),
        ({"bandwidth": 2**63}, "bandwidth 9223372036854775808"),
        ({"max_rounds": -1}, "max_rounds"),
        ({"max_rounds": 1.5}, "max_rounds"),
        ({"abort_after": 0}, "abort_after"),
        ({"max_rounds": 1, "abort_after": 1}, "one way only"),
        ({"bandwidth": 1, "max_rounds": "many"}, "max_rounds"),
    ],
)
def test_a_wrong_figure_changes_nothing(fields: dict[str, Any], why: str) -> None:
    operation = Operation()
    with pytest.raises(ValueError, match=why):
        operation.ask(Ask.SET, **fields)
    assert operation.rounds.limits == LIBXL_PRECOPY
    assert operation.board.ints[Word.BANDWIDTH] == AS_ASKED
    assert operation.board.ints[Word.MAX_DOWNTIME] == AS_ASKED


JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(st.sampled_from(Ask), st.dictionaries(st.sampled_from([*PARAMETERS, "to", "x"]), JSON))
def test_no_request_raises_anything_else(ask: Ask, fields: dict[str, Any]) -> None:
    operation = Operation()
    try:
        told = operation.ask(ask, **fields)
    except (OSError, ValueError):
        assert operation.rounds.limits == LIBXL_PRECOPY
        assert operation.rounds.wanted is None
        assert operation.board.ints[Word.BANDWIDTH] == AS_ASKED
        assert operation.steered == []
    else:
        json.dumps(told)


@pytest.mark.parametrize("way", ["postcopy", "stop-and-copy"])
def test_a_switch_ends_precopy_within_its_round(way: str) -> None:
    operation = Operation()
    assert operation.rounds.ask(0, -1).policy is PrecopyPolicy.CONTINUE_PRECOPY
    operation.ask(Ask.SWITCH, to=way)
    assert operation.rounds.ask(0, -1).policy.name == way.upper().replace("-", "_")
    with pytest.raises(OSError, match="precopy has ended"):
        operation.ask(Ask.SWITCH, to=way)


def test_what_there_is_not() -> None:
    Operation(postcopy=False).refuses("postcopy was not asked for", Ask.SWITCH, to="postcopy")
    Operation(live=False).refuses("no precopy", Ask.SWITCH, to="stop-and-copy")
    Operation(live=False).refuses("no precopy", Ask.SET, max_rounds=1, bandwidth=1)
    for ask, fields in (
        (Ask.SET, {"bandwidth": 1}),
        (Ask.SWITCH, {"to": "postcopy"}),
        (Ask.PAUSE_SENDING, {}),
    ):
        Operation(saving=False).refuses("ask at the source", ask, **fields)
    Operation().refuses("not paused", Ask.RESUME_SENDING)
    Operation().refuses("for page servers and pagers", Ask.ABANDON)


def test_an_engine_without_a_pace() -> None:
    operation = Operation()
    operation.board.engine = Engine.LIBXENGUEST
    operation.refuses("libxenguest.* no bandwidth limit", Ask.SET, bandwidth=1, max_rounds=1)
    operation.refuses("libxenguest.* no bandwidth limit", Ask.PAUSE_SENDING)


def test_what_is_too_late() -> None:
    operation = Operation()
    operation.too_late = "past the transition"
    operation.refuses("past the transition", Ask.CANCEL)
    assert not operation.cancelled
    operation.rounds.ended = True
    operation.refuses("precopy has ended", Ask.SET, max_downtime=1)
    operation.refuses("precopy has ended: the guest would only stand still", Ask.PAUSE_SENDING)


def test_a_cancel() -> None:
    operation = Operation()
    operation.ask(Ask.CANCEL)
    assert operation.cancelled == 1
    assert operation.status.status is MigrationStatus.CANCELLING


def test_what_is_being_cancelled_is_not_cancelled_again_and_not_changed() -> None:
    operation = Operation()
    operation.ask(Ask.CANCEL)
    operation.too_late = "past the transition"
    assert operation.ask(Ask.CANCEL) == {}
    assert operation.cancelled == 1
    operation.steered.clear()
    for ask, fields in STEERED.items():
        operation.refuses("it is being cancelled", ask, **fields)


STEERED: Final[Mapping[Ask, Mapping[str, Any]]] = {
    Ask.SET: {"bandwidth": 1},
    Ask.SWITCH: {"to": "postcopy"},
    Ask.PAUSE_SENDING: {},
    Ask.RESUME_SENDING: {},
}


@pytest.mark.parametrize("ask", [Ask.CANCEL, *STEERED])
def test_what_an_ask_does_not_know_is_refused(ask: Ask) -> None:
    operation = Operation()
    with pytest.raises(ValueError, match=r"unknown parameter 'x{40}': want "):
        operation.ask(ask, **STEERED.get(ask, {}), **{"x" * 5000: 1})
    assert not operation.cancelled
    assert operation.steered == operation.traced == []


@pytest.mark.parametrize("early", [False, True], ids=["in a round", "before the first"])
def test_precopy_does_not_end_while_sending_is_paused(early: bool) -> None:
    """A round may end all the same, by the signs of life: the guest would stand still then."""
    operation = Operation()
    if early:
        operation.steering.live, operation.steering.rounds = False, None
    operation.ask(Ask.PAUSE_SENDING)
    operation.steering.live, operation.steering.rounds = True, operation.rounds
    operation.ask(Ask.SWITCH, to="stop-and-copy")
    assert operation.rounds.ask(9, 0).policy is PrecopyPolicy.CONTINUE_PRECOPY
    assert not operation.rounds.ended
    operation.ask(Ask.SET, max_downtime=60_000)
    operation.ask(Ask.RESUME_SENDING)
    assert operation.rounds.ask(9, 0).policy is PrecopyPolicy.STOP_AND_COPY


@pytest.mark.parametrize(
    "changed", [{"live": False}, {}], ids=["a save of a guest that stands still", "a postcopy"]
)
def test_it_can_be_paused_after_precopy_too(changed: dict[str, bool]) -> None:
    operation = Operation(**changed)
    operation.rounds.ended = True
    operation.board.reals[Word.SUSPENDED_AT] = 1.0
    operation.board.phase = Phase.POSTCOPY_PAGES.value if not changed else Phase.STATE.value
    operation.ask(Ask.PAUSE_SENDING)
    assert operation.status.paused
    operation.ask(Ask.RESUME_SENDING)
    assert not operation.status.paused


def test_a_pause_does_not_count_for_rates() -> None:
    operation = Operation()
    clock = operation.steering.sending_clock
    operation.now += 5
    before = clock()
    operation.ask(Ask.PAUSE_SENDING)
    operation.now += 60
    assert clock() == before
    operation.ask(Ask.PAUSE_SENDING)
    operation.now += 40
    operation.ask(Ask.RESUME_SENDING)
    operation.now += 1
    assert clock() == before + 1


def test_figures_of_a_round() -> None:
    operation = Operation()
    assert operation.status.status is MigrationStatus.SETUP
    assert operation.status.phase == "wait for the receiver"
    ints, reals = operation.board.ints, operation.board.reals
    operation.board.phase = Phase.PRECOPY.value
    ints[Word.TOTAL_PAGES], ints[Word.ROUND_TOTAL] = 1000, 1000
    for second in range(4):
        ints[Word.BYTES] = second * 100 * 4096
        ints[Word.ROUND_DONE] = ints[Word.PAGES] = second * 100
        operation.steering.look()
        operation.now += 1
    status = operation.status
    assert status.status is MigrationStatus.ACTIVE
    assert (status.total, status.remaining) == (1000 * 4096, 700 * 4096)
    assert status.memory_bps == 75 * 4096
    assert status.time_remaining == pytest.approx(700 / 75 * 1000, abs=1)
    assert status.expected_downtime is None
    assert (status.rounds, status.dirty_sync_count) == (0, 1)

    ints[Word.ROUNDS], ints[Word.ROUND_DONE], ints[Word.ROUND_TOTAL] = 1, 0, 200
    ints[Word.DIRTY_COUNT], reals[Word.DIRTY_RATE] = 200, 20.0
    reals[Word.ROUND_RATE] = 100.0
    reals[Word.LAST_EXPECTED], reals[Word.LAST_TOOK] = 9.0, 10.0
    status = operation.status
    assert (status.rounds, status.dirty_sync_count, status.dirty_pages) == (1, 2, 200)
    assert status.dirty_pages_rate == 20.0
    assert status.expected_downtime == round(200 * PAGE_BYTES / 4096 / 100 * 1000)
    assert (status.last_round_expected, status.last_round_time) == (9000, 10000)

    reals[Word.SUSPENDED_AT] = operation.now
    operation.now += 0.25
    status = operation.status
    assert (status.status, status.downtime) == (MigrationStatus.DEVICE, 250)


def test_who_waits_for_what() -> None:
    operation = Operation()
    operation.board.phase = Phase.PRECOPY.value
    operation.board.ints[Word.BYTES] = 1000
    operation.steering.look()
    operation.now += 3
    assert operation.status.waits_for == "the other side: it has taken nothing for 3 s"
    operation.board.ints[Word.BYTES] = 2000
    assert operation.status.waits_for == ""
    operation.board.callback = "suspend"
    assert operation.status.waits_for == "the guest: to suspend"
    operation.ask(Ask.PAUSE_SENDING)
    assert operation.status.waits_for.startswith("you: ")


def test_a_receiver_tells_how_long_vcpus_wait() -> None:
    operation = Operation(saving=False)
    ints, reals = operation.board.ints, operation.board.reals
    operation.board.phase = Stage.POSTCOPY_PAGES.value
    ints[Word.POSTCOPY_TOTAL], ints[Word.POSTCOPY_LEFT], ints[Word.POSTCOPY_FAULTS] = 50, 20, 3
    reals[Word.BLOCKTIME], reals[Word.BLOCKED_SINCE] = 1.5, operation.now - 0.5
    status = operation.status
    assert status.status is MigrationStatus.POSTCOPY_ACTIVE
    assert (status.postcopy_remaining, status.postcopy_requests) == (20, 3)
    assert (status.postcopy_blocktime, status.longest_wait) == (2000, 500)
    assert status.remaining == 20 * 4096
