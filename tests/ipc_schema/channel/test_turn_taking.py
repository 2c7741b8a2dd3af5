from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from xen_save_helper.ipc_schema.channel.authentication import (
    NONCE_SIZE,
    SECRET_SIZE,
    is_proof,
    proof,
)
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    INTEGER_RANGES,
    PROTOCOL_VERSION,
    Answer,
    Kind,
    Message,
    Operation,
    Sender,
)
from xen_save_helper.ipc_schema.channel.msgpack_codec import Envelope
from xen_save_helper.ipc_schema.channel.turn_taking import (
    ControllerEnd,
    HelperEnd,
    PipeControllerEnd,
    State,
    Turn,
    TurnError,
    Violation,
)

SECRET = bytes(range(SECRET_SIZE))
NONCE = b"n" * NONCE_SIZE
CALLBACKS = frozenset({"suspend", "switch_qemu_logdirty", "precopy_policy", "postcopy_transition"})
SAVE_NAMES = sorted(
    name for name in CALLBACKS | {"log", "progress", "complete", "statistics", "hello"}
)
CONTROLLER_NAMES = ["start", "reply", "async_callback_done", "abort", "refused"]


def plain_fields(message: Message) -> dict[str, Any]:
    """Fields of the right types, with arbitrary values."""
    simple: dict[Kind, Any] = {Kind.STRING: "", Kind.BYTES: b"", Kind.BOOL: False}
    return {
        field.name: 0 if field.kind in INTEGER_RANGES else simple[field.kind]
        for field in message.fields
    }


def envelope(seq: int, name: str, **fields: Any) -> Envelope:
    message = CATALOGUE[name]
    return Envelope(seq, message, {**plain_fields(message), **fields})


def new_controller(operation: Operation = Operation.SAVE) -> ControllerEnd:
    return ControllerEnd(SECRET, operation, CALLBACKS)


def greeted() -> tuple[HelperEnd, ControllerEnd]:
    """Both ends after hello and start."""
    helper, controller = HelperEnd(SECRET, NONCE), new_controller()
    hello = envelope(helper.next_seq, "hello", **helper.hello(17))
    helper.sending("hello")
    assert controller.received(hello) is Turn.HELLO
    start = envelope(controller.next_seq, "start", proof=controller.start_proof())
    controller.sending("start")
    assert helper.received(start) is Turn.START
    return helper, controller


class Conversation(RuleBasedStateMachine):
    """Both ends, joined by two queues, with every message tried at every moment.

    The rules of who may speak are stated again here in the plainest way: `stage` and `asked` are
    what the helper has said, and `answer_due` is what the controller has heard.
    """

    def __init__(self) -> None:
        super().__init__()
        self.helper = HelperEnd(SECRET, NONCE)
        self.controller = new_controller()
        self.to_controller: deque[Envelope] = deque()
        self.to_helper: deque[Envelope] = deque()
        self.stage = "silent"
        self.asked = ""
        self.heard = "nothing"
        self.answer_due: tuple[str, int] | None = None

    # What the rules are

    def helper_may_say(self, name: str) -> bool:
        if name == "hello":
            return self.stage == "silent"
        return self.stage == "running" and not self.asked

    def controller_may_say(self, name: str) -> bool:
        match name:
            case "start":
                return self.heard == "hello"
            case "reply" | "async_callback_done":
                return self.answer_due is not None and self.answer_due[0] == name
            case "abort":
                return self.heard in ("start", "end")
            case _:
                return self.heard != "refused"

    # What happens

    @rule(name=st.sampled_from(SAVE_NAMES))
    def helper_says(self, name: str) -> None:
        before = (self.helper.state, self.helper.next_seq, self.helper.waiting)
        seq = self.helper.next_seq
        if not self.helper_may_say(name):
            with pytest.raises(TurnError):
                self.helper.sending(name)
            assert (self.helper.state, self.helper.next_seq, self.helper.waiting) == before
            return
        fields = self.helper.hello(1) if name == "hello" else {}
        self.helper.sending(name)
        self.to_controller.append(envelope(seq, name, **fields))
        if name == "hello":
            self.stage = "greeted"
        elif CATALOGUE[name].answer is not Answer.NONE:
            self.asked = name

    @precondition(lambda self: self.to_controller and self.heard != "refused")
    @rule()
    def controller_hears(self) -> None:
        message = self.to_controller.popleft()
        name = message.message.name
        turn = self.controller.received(message)
        if name == "hello":
            assert turn is Turn.HELLO
            self.heard = "hello"
        elif name == "complete":
            assert turn is Turn.COMPLETE
        answer = CATALOGUE[name].answer
        if answer is Answer.SYNC:
            self.answer_due = ("reply", message.seq)
        elif answer is Answer.ASYNC:
            assert turn is Turn.ASYNC
            self.answer_due = ("async_callback_done", message.seq)

    @rule(name=st.sampled_from(CONTROLLER_NAMES))
    def controller_says(self, name: str) -> None:
        seq = self.controller.next_seq
        if not self.controller_may_say(name):
            with pytest.raises(TurnError):
                self.controller.sending(name)
            assert self.controller.next_seq == seq
            return
        fields: dict[str, Any] = {}
        if name == "start":
            fields = {"proof": self.controller.start_proof()}
            self.heard = "start"
        elif name in ("reply", "async_callback_done"):
            assert self.answer_due is not None
            assert self.controller.waiting == self.answer_due[1]
            fields = {"to": self.controller.waiting}
            self.answer_due = None
        elif name == "refused":
            self.heard = "refused"
            self.answer_due = None
        self.controller.sending(name)
        self.to_helper.append(envelope(seq, name, **fields))

    @precondition(lambda self: self.to_helper)
    @rule()
    def helper_hears(self) -> None:
        message = self.to_helper.popleft()
        turn = self.helper.received(message)
        match message.message.name:
            case "start":
                assert turn is Turn.START
                self.stage = "running"
            case "reply" | "async_callback_done":
                if self.asked == "complete":
                    self.stage = "completed"
                self.asked = ""
            case "refused":
                assert turn is Turn.REFUSED
                self.stage = "refused"

    # What a liar tries

    @rule(
        name=st.sampled_from(sorted(CATALOGUE)),
        skip=st.sampled_from([-1, 1, 2**40]),
        to_helper=st.booleans(),
    )
    def a_number_is_skipped(self, name: str, skip: int, to_helper: bool) -> None:
        queue = self.to_helper if to_helper else self.to_controller
        end: HelperEnd | ControllerEnd = self.helper if to_helper else self.controller
        if queue:
            return
        other = self.controller if to_helper else self.helper
        before = (end.state, end.waiting)
        with pytest.raises(TurnError):
            end.received(envelope(other.next_seq + skip, name))
        assert (end.state, end.waiting) == before

    @precondition(lambda self: self.helper.waiting and not self.to_helper)
    @rule(
        name=st.sampled_from(["reply", "async_callback_done"]),
        to=st.integers(0, 2**64 - 1),
    )
    def another_message_is_answered(self, name: str, to: int) -> None:
        if to == self.helper.waiting:
            return
        before = (self.helper.state, self.helper.waiting)
        with pytest.raises(TurnError) as caught:
            self.helper.received(envelope(self.controller.next_seq, name, to=to))
        assert caught.value.violation is not Violation.WRONG_SEQUENCE
        assert (self.helper.state, self.helper.waiting) == before

    @invariant()
    def the_helper_waits_for_its_own_message(self) -> None:
        assert bool(self.helper.waiting) == bool(self.asked)

    def teardown(self) -> None:
        """From any state, the conversation can end: completed or refused."""
        ends = {"completed", "refused"}
        for _ in range(4):
            while self.to_controller and self.heard != "refused":
                self.controller_hears()
            if self.answer_due is not None:
                self.controller_says(self.answer_due[0])
            elif self.heard == "hello":
                self.controller_says("start")
            while self.to_helper:
                self.helper_hears()
            if self.stage not in ends and not self.to_controller:
                for name in ("hello", "complete"):
                    if self.helper_may_say(name):
                        self.helper_says(name)
        assert self.stage in ends
        assert self.helper.state is self.controller.state


TestConversation = Conversation.TestCase


def violation_of(work: Callable[[], object]) -> Violation:
    with pytest.raises(TurnError) as caught:
        work()
    return caught.value.violation


def test_a_second_hello() -> None:
    helper, controller = greeted()
    hello = envelope(2, "hello", **helper.hello(17))
    assert violation_of(lambda: controller.received(hello)) is Violation.WRONG_TURN


@pytest.mark.parametrize("version", [0, PROTOCOL_VERSION + 1])
def test_another_version(version: int) -> None:
    fields = {**HelperEnd(SECRET, NONCE).hello(17), "version": version}
    hello = envelope(1, "hello", **fields)
    assert violation_of(lambda: new_controller().received(hello)) is Violation.WRONG_VERSION


@pytest.mark.parametrize(
    "change",
    [
        {"proof": b""},
        {"proof": b"x" * 32},
        {"nonce": b"m" * NONCE_SIZE},
        {"nonce": b"", "proof": proof(SECRET, Sender.HELPER, b"")},
        {"proof": proof(SECRET, Sender.CONTROLLER, NONCE)},
        {"proof": proof(b"another secret", Sender.HELPER, NONCE)},
    ],
)
def test_a_hello_without_the_secret(change: dict[str, bytes]) -> None:
    controller = new_controller()
    hello = HelperEnd(SECRET, NONCE).hello(17)
    liar = envelope(1, "hello", **{**hello, **change})
    assert violation_of(lambda: controller.received(liar)) is Violation.WRONG_PROOF
    assert controller.received(envelope(1, "hello", **hello)) is Turn.HELLO


@pytest.mark.parametrize("shown", [b"", proof(SECRET, Sender.HELPER, NONCE)])
def test_a_start_without_the_secret(shown: bytes) -> None:
    helper = HelperEnd(SECRET, NONCE)
    helper.sending("hello")
    start = envelope(1, "start", proof=shown)
    assert violation_of(lambda: helper.received(start)) is Violation.WRONG_PROOF


def test_a_proof_is_of_its_end_and_nonce() -> None:
    assert is_proof(proof(SECRET, Sender.HELPER, NONCE), SECRET, Sender.HELPER, NONCE)
    assert not is_proof(proof(SECRET, Sender.HELPER, NONCE), SECRET, Sender.CONTROLLER, NONCE)
    assert not is_proof(proof(SECRET, Sender.HELPER, NONCE), SECRET, Sender.HELPER, NONCE[1:])


@pytest.mark.parametrize(
    ("asked", "answered"), [("suspend", "reply"), ("precopy_policy", "async_callback_done")]
)
def test_the_wrong_kind_of_answer(asked: str, answered: str) -> None:
    helper, _controller = greeted()
    helper.sending(asked)
    answer = envelope(2, answered, to=helper.waiting)
    assert violation_of(lambda: helper.received(answer)) is Violation.WRONG_ANSWER


def test_an_answer_to_nothing() -> None:
    helper, _controller = greeted()
    answer = envelope(2, "reply", to=0)
    assert violation_of(lambda: helper.received(answer)) is Violation.WRONG_TURN


def test_a_second_callback_while_one_waits() -> None:
    _helper, controller = greeted()
    controller.received(envelope(2, "suspend"))
    log = envelope(3, "log")
    assert violation_of(lambda: controller.received(log)) is Violation.WRONG_TURN


def test_a_message_after_complete() -> None:
    _helper, controller = greeted()
    controller.received(envelope(2, "complete"))
    controller.sending("reply")
    assert controller.state is State.COMPLETED
    assert violation_of(lambda: controller.received(envelope(3, "log"))) is Violation.WRONG_TURN


def test_an_abort_can_come_at_any_time_after_start() -> None:
    helper, controller = greeted()
    for name in ("suspend", "complete"):
        helper.sending(name)
        controller.received(envelope(helper.waiting, name))
        controller.sending("abort")
        assert helper.received(envelope(controller.next_seq - 1, "abort")) is Turn.ABORT
        answer = "reply" if name == "complete" else "async_callback_done"
        controller.sending(answer)
        helper.received(envelope(controller.next_seq - 1, answer, to=helper.waiting))
    controller.sending("abort")
    assert helper.received(envelope(controller.next_seq - 1, "abort")) is Turn.ABORT


def test_a_callback_that_is_not_provided() -> None:
    controller = ControllerEnd(SECRET, Operation.SAVE, frozenset())
    controller.received(envelope(1, "hello", **HelperEnd(SECRET, NONCE).hello(17)))
    controller.sending("start")
    ask = envelope(2, "suspend")
    assert violation_of(lambda: controller.received(ask)) is Violation.NOT_PROVIDED


def test_a_message_of_another_operation() -> None:
    _helper, controller = greeted()
    results = envelope(2, "restore_results")
    assert violation_of(lambda: controller.received(results)) is Violation.WRONG_OPERATION


def test_each_end_says_its_own_part_only() -> None:
    helper, controller = greeted()
    assert violation_of(lambda: helper.sending("reply")) is Violation.WRONG_SENDER
    assert violation_of(lambda: controller.received(envelope(2, "reply"))) is Violation.WRONG_SENDER
    assert violation_of(lambda: helper.received(envelope(2, "log"))) is Violation.WRONG_SENDER


class TestPipes:
    def end(self) -> PipeControllerEnd:
        return PipeControllerEnd(Operation.RESTORE, frozenset({"static_data_done"}))

    def test_the_first_message_is_a_callback(self) -> None:
        end = self.end()
        assert end.received(CATALOGUE["static_data_done"], {"missing": 0}) is Turn.SYNC
        end.sending("reply")
        assert end.received(CATALOGUE["complete"], {"retval": 0, "errnoval": 0}) is Turn.COMPLETE

    def test_a_second_callback_while_one_waits(self) -> None:
        end = self.end()
        end.received(CATALOGUE["static_data_done"], {"missing": 0})
        log = CATALOGUE["log"]
        assert violation_of(lambda: end.received(log, {})) is Violation.WRONG_TURN

    def test_a_callback_that_is_not_provided(self) -> None:
        end, suspend = self.end(), CATALOGUE["suspend"]
        assert violation_of(lambda: end.received(suspend, {})) is Violation.NOT_PROVIDED
