"""Whose turn it is on the ZeroMQ channel: the two ends of the conversation, without I/O.

All that affects a state stands in the two tables. An event is a message, sent or received, of one
of the classes of `Turn`; an event that its state has no row for breaks the protocol. Beside the
turn, a message must come in sequence, be the sender's, belong to the operation, and an answer
must name the message that waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from ipc_schema.authentication import NONCE_SIZE, is_proof, proof
from ipc_schema.messages import (
    CATALOGUE,
    PROTOCOL_VERSION,
    Answer,
    Message,
    Operation,
    Sender,
)
from ipc_schema.msgpack_codec import Envelope


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
"""Where each message leads. Both ends go through it, each at its own sight of the message."""

_CHANNEL_TURNS: Final[Mapping[str, Turn]] = {
    "hello": Turn.HELLO,
    "start": Turn.START,
    "statistics": Turn.NOTICE,
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
ALWAYS_PROVIDED: Final = frozenset({"log", "progress", "complete", "statistics", "hello"})
"""What the helper may send whatever `cbflags` says."""


class _End:
    """One end's sight of the conversation. `waiting` is the sequence number of the callback that
    waits for its answer, 0 where none does."""

    def __init__(self, own: Sender) -> None:
        self.state = State.SILENT
        self.waiting = 0
        self._own = own
        self._sent = 0
        self._received = 0

    def sending(self, name: str) -> int:
        """Take a turn: the sequence number to send message `name` under. Raises TurnError."""
        message = CATALOGUE[name]
        if message.sender is not self._own:
            raise TurnError(Violation.WRONG_SENDER, name)
        self._step(message, self._sent + 1)
        self._sent += 1
        return self._sent

    def _take(self, envelope: Envelope) -> Turn:
        """Let the peer take a turn. Raises TurnError."""
        seq, message, fields = envelope
        if message.sender is self._own:
            raise TurnError(Violation.WRONG_SENDER, message.name)
        if seq != self._received + 1:
            raise TurnError(
                Violation.WRONG_SEQUENCE, f"{message.name} has {seq}, want {self._received + 1}"
            )
        turn = TURNS[message.name]
        if turn in _ANSWERS and fields["to"] != self.waiting:
            raise TurnError(
                Violation.WRONG_ANSWER, f"{message.name} to {fields['to']}; {self._wanted()}"
            )
        self._step(message, seq)
        self._received = seq
        return turn

    def _step(self, message: Message, seq: int) -> None:
        turn = TURNS[message.name]
        state = CONVERSATION.get((self.state, turn))
        if state is None:
            answers = turn in _ANSWERS and self.waiting
            violation = Violation.WRONG_ANSWER if answers else Violation.WRONG_TURN
            raise TurnError(violation, f"{message.name} while {self.state.value}")
        if turn in _WAITING:
            self.waiting = seq
        elif turn in _ANSWERS:
            self.waiting = 0
        self.state = state

    def _wanted(self) -> str:
        return f"{self.waiting} waits" if self.waiting else "nothing waits"


def admitted(operation: Operation, provided: frozenset[str]) -> frozenset[str]:
    """The names that a helper may send in `operation` when the callbacks `provided` are there."""
    names = provided | ALWAYS_PROVIDED
    return frozenset(name for name in names if operation in CATALOGUE[name].operations)


def _admit(message: Message, operation: Operation, names: frozenset[str]) -> None:
    if message.name in names:
        return
    if operation not in message.operations:
        raise TurnError(Violation.WRONG_OPERATION, f"{message.name} in a {operation.value}")
    raise TurnError(Violation.NOT_PROVIDED, message.name)


class HelperEnd(_End):
    """The helper's end. `nonce` is NONCE_SIZE fresh random octets."""

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
        return self._take(envelope)


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
        _seq, message, fields = envelope
        if message.name == "hello":
            if fields["version"] != PROTOCOL_VERSION:
                raise TurnError(
                    Violation.WRONG_VERSION,
                    f"the helper speaks {fields['version']}, the controller {PROTOCOL_VERSION}",
                )
            if len(fields["nonce"]) != NONCE_SIZE or not is_proof(
                fields["proof"], self._secret, Sender.HELPER, fields["nonce"]
            ):
                raise TurnError(Violation.WRONG_PROOF, "hello does not know the secret")
            self._nonce = fields["nonce"]
        elif message.sender is Sender.HELPER:
            _admit(message, self._operation, self._admitted)
        return self._take(envelope)

    def start_proof(self) -> bytes:
        """The `proof` of `start`, for the hello that was received."""
        return proof(self._secret, Sender.CONTROLLER, self._nonce)


class PipeControllerEnd(_End):
    """The controller's end on libxl's pipes: a helper that needs no greeting, and no numbers on
    what is said. Its turns are the same."""

    def __init__(self, operation: Operation, provided: frozenset[str]) -> None:
        super().__init__(Sender.CONTROLLER)
        self.state = State.RUNNING
        self._operation = operation
        self._admitted = admitted(operation, provided)

    def received(self, message: Message, fields: dict[str, Any]) -> Turn:
        """The class of the helper's message: what to do with it. Raises TurnError."""
        _admit(message, self._operation, self._admitted)
        return self._take(Envelope(self._received + 1, message, fields))
