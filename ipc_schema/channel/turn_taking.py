"""Whose turn it is on the ZeroMQ channel: the two ends of the conversation, without I/O.

Everything that affects a state is in the two tables. An event is a message, sent or received, of
one of the classes of `Turn`; an event for which its state has no row breaks the protocol. Besides,
a message must come in sequence, be one that its sender may send, and belong to the operation, and
an answer must name the message that waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final, NamedTuple

from xen_save_helper.ipc_schema.channel.authentication import NONCE_SIZE, is_proof, proof
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    CHANNEL_MESSAGES,
    PROTOCOL_VERSION,
    UNCONDITIONAL,
    Answer,
    Message,
    Operation,
    Sender,
)
from xen_save_helper.ipc_schema.channel.msgpack_codec import Envelope


class Violation(Enum):
    """What a peer did wrong."""

    WRONG_TURN = "wrong turn"
    WRONG_SEQUENCE = "wrong sequence number"
    WRONG_SENDER = "a message of the other end"
    WRONG_OPERATION = "a message of another operation"
    WRONG_ANSWER = "an answer to a message that does not wait for it"
    NOT_PROVIDED = "a callback that is not provided"
    WRONG_VERSION = "wrong version"
    WRONG_PROOF = "wrong secret"


class TurnError(Exception):
    """The peer (or the caller, for a message to be sent) broke the protocol."""

    def __init__(self, violation: Violation, detail: str) -> None:
        super().__init__(f"{violation.value}: {detail}")
        self.violation = violation


class Turn(Enum):
    """The classes of messages that the tables tell apart."""

    HELLO = "hello"
    START = "start"
    NOTICE = "a message without an answer"
    SYNC = "a sync callback"
    ASYNC = "an async callback"
    COMPLETE = "complete"
    REPLY = "reply"
    ASYNC_DONE = "async_callback_done"
    ABORT = "abort"
    REFUSED = "refused"


class State(Enum):
    """Where a conversation stands; the same names serve both ends."""

    SILENT = "nothing was said"
    GREETED = "hello was said"
    RUNNING = "the helper is at work"
    SYNC_WAITS = "a sync callback waits for its reply"
    ASYNC_WAITS = "an async callback waits for its answer"
    COMPLETING = "complete waits for its reply"
    COMPLETED = "complete was answered"
    REFUSED = "the helper was refused"


_AT_WORK: Final = (State.RUNNING, State.SYNC_WAITS, State.ASYNC_WAITS, State.COMPLETING)

CONVERSATION: Final[Mapping[tuple[State, Turn], State]] = {
    (State.SILENT, Turn.HELLO): State.GREETED,
    (State.GREETED, Turn.START): State.RUNNING,
    (State.RUNNING, Turn.NOTICE): State.RUNNING,
    (State.RUNNING, Turn.SYNC): State.SYNC_WAITS,
    (State.RUNNING, Turn.ASYNC): State.ASYNC_WAITS,
    (State.RUNNING, Turn.COMPLETE): State.COMPLETING,
    (State.SYNC_WAITS, Turn.REPLY): State.RUNNING,
    (State.ASYNC_WAITS, Turn.ASYNC_DONE): State.RUNNING,
    (State.COMPLETING, Turn.REPLY): State.COMPLETED,
    # The controller's own turn-breakers: each can cross a message of the helper.
    **{(state, Turn.ABORT): state for state in (*_AT_WORK, State.COMPLETED)},
    **{(state, Turn.REFUSED): State.REFUSED for state in State if state is not State.REFUSED},
}
"""The state that each message leads to. Each end follows it when it sees the message."""

_CHANNEL_TURNS: Final[Mapping[str, Turn]] = {
    "hello": Turn.HELLO,
    "start": Turn.START,
    "statistics": Turn.NOTICE,
    "page_server": Turn.NOTICE,
    "reply": Turn.REPLY,
    "async_callback_done": Turn.ASYNC_DONE,
    "abort": Turn.ABORT,
    "refused": Turn.REFUSED,
    "complete": Turn.COMPLETE,
}
_CALLBACK_TURNS: Final[Mapping[Answer, Turn]] = {
    Answer.NONE: Turn.NOTICE,
    Answer.SYNC: Turn.SYNC,
    Answer.ASYNC: Turn.ASYNC,
}
TURNS: Final[Mapping[str, Turn]] = {
    name: _CHANNEL_TURNS.get(name, _CALLBACK_TURNS[message.answer])
    for name, message in CATALOGUE.items()
}
"""The class of each message of the catalogue."""

_ANSWERS: Final = frozenset({Turn.REPLY, Turn.ASYNC_DONE})
_WAITING: Final = frozenset({Turn.SYNC, Turn.ASYNC, Turn.COMPLETE})
ALWAYS_PROVIDED: Final = UNCONDITIONAL | {
    row.name for row in CHANNEL_MESSAGES if row.sender is Sender.HELPER
}
"""What the helper may send whatever `cbflags` says."""


class _Move(NamedTuple):
    """What a message does in a given state; `moves` are those of the state that it leads to."""

    turn: Turn
    state: State
    waits: bool
    answers: bool
    moves: dict[str, _Move]


def _compile() -> dict[State, dict[str, _Move]]:
    """The tables by state and message name, so that a message costs one look-up at each end."""
    moves: dict[State, dict[str, _Move]] = {state: {} for state in State}
    for name, turn in TURNS.items():
        for state in State:
            if (to := CONVERSATION.get((state, turn))) is not None:
                waits, answers = turn in _WAITING, turn in _ANSWERS
                moves[state][name] = _Move(turn, to, waits, answers, moves[to])
    return moves


_MOVES: Final = _compile()


class _End:
    """One end's view of the conversation. `waiting` is the sequence number of the callback that
    waits for its answer, 0 if none does."""

    def __init__(self, own: Sender, state: State = State.SILENT) -> None:
        self.state = state
        self.waiting = 0
        self.next_seq = 1
        """The sequence number of the next message to be sent."""
        self._own = own
        self._moves = _MOVES[state]
        self._wanted_seq = 1

    def sending(self, name: str) -> None:
        """Take a turn with message `name`. Raises TurnError."""
        if CATALOGUE[name].sender is not self._own:
            raise TurnError(Violation.WRONG_SENDER, name)
        move = self._moves.get(name)
        if move is None:
            raise self._out_of_turn(name)
        self._follow(move, self.next_seq)
        self.next_seq += 1

    def _take(self, seq: int, message: Message, fields: dict[str, Any]) -> Turn:
        """Let the peer take a turn. Raises TurnError."""
        if message.sender is self._own:
            raise TurnError(Violation.WRONG_SENDER, message.name)
        if seq != self._wanted_seq:
            detail = f"{message.name} has {seq}, want {self._wanted_seq}"
            raise TurnError(Violation.WRONG_SEQUENCE, detail)
        move = self._moves.get(message.name)
        if move is None:
            raise self._out_of_turn(message.name)
        if move.answers and fields["to"] != self.waiting:
            detail = f"{message.name} to {fields['to']} while {self.waiting} waits"
            raise TurnError(Violation.WRONG_ANSWER, detail)
        self._follow(move, seq)
        self._wanted_seq = seq + 1
        return move.turn

    def _follow(self, move: _Move, seq: int) -> None:
        self.state = move.state
        self._moves = move.moves
        if move.waits:
            self.waiting = seq
        elif move.answers:
            self.waiting = 0

    def _out_of_turn(self, name: str) -> TurnError:
        wrong_kind = TURNS[name] in _ANSWERS and self.waiting
        violation = Violation.WRONG_ANSWER if wrong_kind else Violation.WRONG_TURN
        return TurnError(violation, f"{name} while {self.state.value}")


def admitted(operation: Operation, provided: frozenset[str]) -> frozenset[str]:
    """The names of the messages that a helper may send in `operation`, given the callbacks
    `provided`."""
    names = provided | ALWAYS_PROVIDED
    return frozenset(name for name in names if operation in CATALOGUE[name].operations)


def _not_admitted(message: Message, operation: Operation) -> TurnError:
    if operation not in message.operations:
        return TurnError(Violation.WRONG_OPERATION, f"{message.name} in a {operation.value}")
    return TurnError(Violation.NOT_PROVIDED, message.name)


class HelperEnd(_End):
    """The helper's end. `nonce` is NONCE_SIZE fresh random bytes."""

    def __init__(self, secret: bytes, nonce: bytes) -> None:
        super().__init__(Sender.HELPER)
        self._secret = secret
        self._nonce = nonce

    def hello(self, pid: int) -> dict[str, Any]:
        """The fields of `hello`."""
        shown = proof(self._secret, Sender.HELPER, self._nonce)
        return {"version": PROTOCOL_VERSION, "pid": pid, "nonce": self._nonce, "proof": shown}

    def received(self, envelope: Envelope) -> Turn:
        """The class of the controller's message: what to do with it. Raises TurnError."""
        if envelope.message.name == "start" and not is_proof(
            envelope.fields["proof"], self._secret, Sender.CONTROLLER, self._nonce
        ):
            raise TurnError(Violation.WRONG_PROOF, "start does not know the secret")
        return self._take(*envelope)


class ControllerEnd(_End):
    """The controller's end, for one `operation` with the callbacks `provided`."""

    def __init__(self, secret: bytes, operation: Operation, provided: frozenset[str]) -> None:
        super().__init__(Sender.CONTROLLER)
        self._secret = secret
        self._operation = operation
        self._admitted = admitted(operation, provided)
        self._nonce = b""

    def received(self, envelope: Envelope) -> Turn:
        """The class of the helper's message: what to do with it. Raises TurnError."""
        seq, message, fields = envelope
        if self.state is State.SILENT and message.name == "hello":
            self._check_hello(fields)
        elif message.name not in self._admitted and message.sender is Sender.HELPER:
            raise _not_admitted(message, self._operation)
        return self._take(seq, message, fields)

    def _check_hello(self, fields: dict[str, Any]) -> None:
        if fields["version"] != PROTOCOL_VERSION:
            detail = f"the helper speaks {fields['version']}, the controller {PROTOCOL_VERSION}"
            raise TurnError(Violation.WRONG_VERSION, detail)
        nonce = fields["nonce"]
        if len(nonce) != NONCE_SIZE or not is_proof(
            fields["proof"], self._secret, Sender.HELPER, nonce
        ):
            raise TurnError(Violation.WRONG_PROOF, "hello does not know the secret")
        self._nonce = nonce

    def start_proof(self) -> bytes:
        """The `proof` of `start`, for the hello that was received."""
        return proof(self._secret, Sender.CONTROLLER, self._nonce)


class PipeControllerEnd(_End):
    """The controller's end on libxl's pipes: no greeting and no sequence numbers, but the same
    turns."""

    def __init__(self, operation: Operation, provided: frozenset[str]) -> None:
        super().__init__(Sender.CONTROLLER, State.RUNNING)
        self._operation = operation
        self._admitted = admitted(operation, provided)

    def received(self, message: Message, fields: dict[str, Any]) -> Turn:
        """The class of the helper's message: what to do with it. Raises TurnError."""
        if message.name not in self._admitted:
            raise _not_admitted(message, self._operation)
        return self._take(self._wanted_seq, message, fields)
