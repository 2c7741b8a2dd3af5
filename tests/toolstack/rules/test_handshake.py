"""The handshake: its bytes, its tables, and that no order of events makes two guests of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.streams import xl_handshake
from xen_save_helper.toolstack.rules import handshake
from xen_save_helper.toolstack.rules.handshake import (
    RECEIVER_ENDS,
    RECEIVER_TABLE,
    SENDER_ENDS,
    SENDER_INTERRUPTIBLE,
    SENDER_TABLE,
    Event,
    Receiver,
    Sender,
)
from xen_save_helper.toolstack.xl.outcome import EXIT_CODES, Outcome, outcome_of


def run_sender(*events: Event) -> list[Sender]:
    machine = handshake.sender()
    return [machine.step(event) for event in events]


def run_receiver(*events: Event) -> list[Receiver]:
    machine = handshake.receiver()
    return [machine.step(event) for event in events]


def test_messages_are_xls() -> None:
    # sizeof(banner) - 1, sizeof of the others: xl.h and migrate_read_fixedmessage's callers.
    assert len(xl_handshake.BANNER.data) == 54
    assert xl_handshake.BANNER.data.endswith(b".\n")
    assert [
        len(message)
        for message in (
            xl_handshake.READY.data,
            xl_handshake.GO.data,
            xl_handshake.REPORT.data,
            xl_handshake.SYNC.data,
        )
    ] == [34, 44, 39, 42]


OK, FAILED = Event.OK, Event.FAILED
TO_STREAM = (OK, OK, OK)
TO_REPORT = (*TO_STREAM, OK, OK, OK, OK)


@pytest.mark.parametrize(
    ("events", "last"),
    [
        pytest.param(
            (*TO_STREAM, Event.NEVER_SUSPENDED, OK), [Sender.SETTLE, Sender.RUNNING_AT_SOURCE],
            id="failed, guest never suspended",
        ),
        pytest.param(
            (*TO_STREAM, FAILED, OK), [Sender.RESUME, Sender.RUNNING_AT_SOURCE],
            id="failed before the hand-over",
        ),
        pytest.param(
            (*TO_REPORT, OK, OK), [Sender.DESTROY, Sender.SUCCESS],
            id="success",
        ),
        pytest.param(
            (*TO_REPORT, Event.NOT_STARTED, OK, OK, OK),
            [Sender.READ_PERMISSION, Sender.RENAME_BACK, Sender.RESUME, Sender.RUNNING_AT_SOURCE],
            id="the report says that the start failed",
        ),
        pytest.param((*TO_REPORT, FAILED), [Sender.UNDEFINED], id="the link is lost after GO"),
        pytest.param(
            (*TO_STREAM, Event.FAILED_AFTER_TRANSITION, FAILED, OK),
            [Sender.LOOK_FOR_SYNC, Sender.RENAME_INCONSISTENT, Sender.POSTCOPY_FAILED],
            id="failed after the postcopy transition",
        ),
        pytest.param(
            (*TO_STREAM, Event.FAILED_AFTER_TRANSITION, OK, OK),
            [Sender.LOOK_FOR_SYNC, Sender.DESTROY, Sender.SUCCESS],
            id="failed here when the destination had all of it",
        ),
        pytest.param(
            (*TO_STREAM, Event.TRANSITIONED, OK, OK),
            [Sender.READ_SYNC, Sender.DESTROY, Sender.SUCCESS],
            id="postcopy success",
        ),
    ],
)  # fmt: skip
def test_rows_of_the_caller(events: tuple[Event, ...], last: list[Sender]) -> None:
    assert run_sender(*events)[-len(last) :] == last


def test_a_refused_guest_is_not_touched() -> None:
    """The guest was never asked to suspend, so there is nothing to resume."""
    assert run_sender(OK, OK, FAILED) == [
        Sender.WRITE_CONFIG, Sender.READ_VERDICT, Sender.RUNNING_AT_SOURCE
    ]  # fmt: skip
    assert run_receiver(OK, OK, FAILED, OK)[-2:] == [Receiver.REFUSE, Receiver.NOT_STARTED]


def test_the_guest_is_renamed_away_before_go() -> None:
    states = run_sender(*TO_REPORT)
    assert states.index(Sender.RENAME_AWAY) + 1 == states.index(Sender.SAY_GO)


def test_receiver_gives_the_guest_back_only_after_its_copy_is_gone() -> None:
    failed_start = (OK, OK, OK, OK, OK, OK, OK, FAILED)
    assert run_receiver(*failed_start, OK, OK, OK)[-4:] == [
        Receiver.REPORT_FAILED,
        Receiver.DESTROY_TO_GIVE_BACK,
        Receiver.ALLOW_BACK,
        Receiver.NOT_STARTED,
    ]
    assert Receiver.ALLOW_BACK not in run_receiver(*failed_start, OK, FAILED)


@pytest.mark.parametrize(
    "table", [pytest.param(SENDER_TABLE, id="sender"), pytest.param(RECEIVER_TABLE, id="receiver")]
)
def test_every_action_has_a_way_on_when_it_fails(table: dict[tuple[object, Event], object]) -> None:
    for state in {state for state, _ in table}:
        assert (state, Event.OK) in table
        assert (state, Event.FAILED) in table


def test_an_event_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        handshake.sender().step(Event.TRANSITIONED)


def test_each_end_of_the_sender_has_an_exit_code() -> None:
    codes = {end: EXIT_CODES[outcome_of(end)] for end in SENDER_ENDS}
    assert sorted(codes.values()) == [0, 1, 3, 4, 5]
    assert codes[Sender.RUNNING_AT_SOURCE] == 1
    assert EXIT_CODES[Outcome.POSTCOPY_FAILED] == 3
    assert EXIT_CODES[Outcome.UNDEFINED] == 4


def test_an_abort_is_possible_only_while_the_guest_is_surely_here() -> None:
    """Or while nothing but our own waiting is given up."""
    assert SENDER_TABLE[Sender.SERVE_PAGES, Event.NOT_AWAITED] is Sender.SUCCESS
    for state in SENDER_INTERRUPTIBLE - {Sender.SERVE_PAGES}:
        end = SENDER_TABLE[state, Event.FAILED]
        assert end in {Sender.RUNNING_AT_SOURCE, Sender.RESUME}


def possible(table: Mapping[tuple[Any, Event], Any], state: object) -> list[Event]:
    return [event for at, event in table if at is state]


@given(st.data())
def test_any_order_of_events_ends(data: st.DataObject) -> None:
    for machine, table in (
        (handshake.sender(), SENDER_TABLE),
        (handshake.receiver(), RECEIVER_TABLE),
    ):
        steps = 0
        while not machine.ended:
            machine.step(data.draw(st.sampled_from(possible(table, machine.state))))
            steps += 1
            assert steps < len(table)


class World:
    """Sender and receiver joined by a link that may be cut at any moment; where the guest runs."""

    SAYS: Final = {
        Receiver.SAY_BANNER: "banner",
        Receiver.ACCEPT: "accepted",
        Receiver.REFUSE: "refused",
        Receiver.SAY_READY: "ready",
        Receiver.REPORT_STARTED: "started",
        Receiver.REPORT_FAILED: "not started",
        Receiver.ALLOW_BACK: "allowed",
        Receiver.SAY_SYNC: "sync",
    }
    EXPECTS: Final = {
        Sender.READ_BANNER: {"banner": Event.OK},
        Sender.READ_VERDICT: {"accepted": Event.OK},
        Sender.READ_READY: {"ready": Event.OK},
        Sender.READ_REPORT: {"started": Event.OK, "not started": Event.NOT_STARTED},
        Sender.READ_PERMISSION: {"allowed": Event.OK},
        Sender.READ_SYNC: {"sync": Event.OK},
    }

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.sender, self.receiver = handshake.sender(), handshake.receiver()
        self.to_sender: list[str] = []
        self.go_sent = False
        self.config_sent = False
        self.accepted = False
        self.streamed: Event | None = None
        self.left = False
        self.source, self.destination = "running", "absent"
        self.nothing_fails = False

    def fails(self) -> bool:
        return not self.nothing_fails and bool(self.draw(st.integers(0, 9)) == 0)

    def check(self) -> None:
        assert not (self.source == "running" and self.destination == "running")

    def step_sender(self) -> bool:
        state = self.sender.state
        if state in self.EXPECTS:
            if self.to_sender:
                event = self.EXPECTS[state].get(self.to_sender.pop(0), Event.FAILED)
                if state is Sender.READ_REPORT and event is OK and self.left:
                    event = Event.PAGES_LEFT
            elif self.receiver.ended or self.fails():
                event = Event.FAILED
            else:
                return False
        elif state is Sender.LOOK_FOR_SYNC:
            if not (self.receiver.ended or self.fails()):
                return False
            event = OK if self.to_sender[-1:] == ["sync"] else FAILED
        elif state is Sender.RUN_STREAM:
            assert self.accepted
            self.source = "suspended"
            event = self.draw(
                st.sampled_from([OK, Event.TRANSITIONED, FAILED, Event.FAILED_AFTER_TRANSITION])
            )
            self.streamed = event
            self.left = event is OK and bool(self.draw(st.booleans()))
        elif state is Sender.SERVE_PAGES:
            assert self.destination == "running"
            event = FAILED if self.fails() else self.draw(st.sampled_from([OK, Event.NOT_AWAITED]))
            self.left = event is not OK
        else:
            event = FAILED if self.fails() else OK
        if event is OK:
            self.config_sent |= state is Sender.WRITE_CONFIG
            self.go_sent |= state is Sender.SAY_GO
            if state is Sender.RESUME:
                self.source = "running"
            if state is Sender.DESTROY:
                assert not self.left, "the destination lacks pages that are here"
                self.source = "gone"
        self.sender.step(event)
        return True

    def step_receiver(self) -> bool:
        state = self.receiver.state
        event = FAILED if self.fails() else OK
        if state is Receiver.READ_CONFIG and event is OK and not self.config_sent:
            if not self.sender.ended:
                return False
            event = FAILED
        if state is Receiver.RUN_STREAM:
            # A receiver that has not accepted gets no page.
            assert self.accepted
            if self.streamed is None:
                if not self.sender.ended:
                    return False
                event = FAILED
            elif self.streamed is Event.TRANSITIONED:
                # The guest may also have run before a failure.
                self.destination = "running"
                event = event if event is FAILED else Event.RESUMED
            elif self.streamed is Event.FAILED_AFTER_TRANSITION and self.draw(st.booleans()):
                # All of it had arrived before the sender failed.
                self.destination = "running"
                event = Event.RESUMED
            elif self.streamed is not OK:
                event = FAILED
            else:
                self.destination = "paused"
        if state is Receiver.READ_GO and event is OK and not self.go_sent:
            if not self.sender.ended:
                return False
            event = FAILED
        if state in self.SAYS and event is OK:
            self.to_sender.append(self.SAYS[state])
        if state is Receiver.ACCEPT and event is OK:
            self.accepted = True
        if state is Receiver.UNPAUSE and event is OK:
            self.destination = "running"
        if state in {Receiver.DESTROY, Receiver.DESTROY_TO_GIVE_BACK} and event is OK:
            self.destination = "absent"
        self.receiver.step(event)
        return True


@given(st.data())
def test_one_guest_one_place(data: st.DataObject) -> None:
    world = World(data)
    idle = 0
    while not (world.sender.ended and world.receiver.ended):
        turn = data.draw(st.booleans())
        ended = world.sender.ended if turn else world.receiver.ended
        moved = not ended and (world.step_sender() if turn else world.step_receiver())
        idle = 0 if moved else idle + 1
        if idle > 20:
            # The draw kept choosing one side, or both wait for something that will not come.
            world.nothing_fails = True
            moved = not world.sender.ended and world.step_sender()
            moved = (not world.receiver.ended and world.step_receiver()) or moved
            world.nothing_fails = False
            assert moved, f"{world.sender.state} and {world.receiver.state} wait for each other"
            idle = 0
        world.check()
    if world.source == "gone":
        assert world.destination == "running"
    if world.sender.state is Sender.RUNNING_AT_SOURCE:
        assert world.destination in {"absent", "paused"}
        assert world.receiver.state is Receiver.NOT_STARTED


def test_ends_have_no_way_on() -> None:
    assert not {state for state, _ in SENDER_TABLE} & SENDER_ENDS
    assert not {state for state, _ in RECEIVER_TABLE} & RECEIVER_ENDS
