"""Messages: msgpack envelopes, libxl's pipe encoding in each dialect, and whole conversations."""

from __future__ import annotations

import asyncio
import copy
import os
import sys
from random import Random
from typing import Any, Final

import msgpack

from tests.fuzz.mutations import Seed, Words, joined, mutate
from tests.fuzz.target import DECODED, Target, promise
from xen_save_helper.ipc_schema.channel import msgpack_codec, pipe_codec
from xen_save_helper.ipc_schema.channel.authentication import NONCE_SIZE, SECRET_SIZE
from xen_save_helper.ipc_schema.channel.helper_arguments import HelperArguments
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import (
    CALLBACKS,
    CATALOGUE,
    INTEGER_RANGES,
    MAX_BODY,
    Answer,
    Dialect,
    Kind,
    Message,
    Operation,
    Sender,
)
from xen_save_helper.ipc_schema.channel.msgpack_codec import Envelope
from xen_save_helper.ipc_schema.channel.turn_taking import ControllerEnd, HelperEnd, TurnError
from xen_save_helper.toolstack.helpers.pipe_controller import PipeController

_VARIANTS: Final = 6
"""Seeds for each message."""
_TEXTS: Final = ("", "x", "no such page", "saknas \u00e4nnu \u4e0d \U0001f600", "x" * 31, "y" * 300)
_PIPE_SIZE: Final = 1 << 16

_STRANGE: Final[tuple[Any, ...]] = (
    *(sign * ((1 << bits) + step) for bits in (0, 7, 8, 31, 32, 62) for step in (-1, 0, 1)
      for sign in (1, -1)),
    2**63, -(2**63), 2**64 - 1, None, True, False, 0.0, 1.5, float("nan"), float("inf"), "", "x",
    "\0", "suspend", "no such message", "z" * 70_000, "z" * 65_536, b"", b"\xff",
    b"b" * 65_536, [], [1], [[[[]]]], {}, [[{}]], ["a"] * 20, ["a"] * 70_000,
)  # fmt: skip
"""Values that stand where another should, in messages that are otherwise right."""

_MSGPACK_WORDS: Final = Words(
    tokens=tuple(
        bytes.fromhex(octets)
        for octets in (
            "c0 c1 c2 80 90 a0 ff",
            "dcffff", "ddffffffff", "deffff", "dfffffffff", "dd40000000", "df40000000",
            "d9ff", "daffff", "dbffffffff", "db40000000", "c4ff", "c5ffff", "c6ffffffff",
            "c640000000", "c7ffff", "c8ffff05", "c9ffffffffff", "c70c ff 00000000 0000000000000000",
            "d4ff00", "d6ff00000000", "d7ffffffffffffffffff", "c7 00 ff", "c7 00 05",
            "cb7ff8000000000000", "cbfff0000000000000", "ca7fc00000",
            "cfffffffffffffffff", "d38000000000000000", "cc00", "d000", "cd0001",
            "a2c328", "a3eda080", "a1ff", "82a0c0a0c0", "81c0c0", "8190c0", "81a178 01",
        )
    ),
    openers=(b"\x91", b"\x92\x01", b"\x81\x01", b"\xdc\x00\x01", b"\xdd\x00\x00\x00\x01"),
)  # fmt: skip

_PIPE_WORDS: Final = Words(
    tokens=(
        b"\0",
        b"\0\0\0\0",
        b"\1\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x40",
        b"\xc3\x28",
    )
)


def targets() -> list[Target]:
    """All of this module."""
    return [_msgpack(), *map(_pipe, Dialect), *map(_conversation, Dialect)]


def values_of(message: Message, chance: Random) -> dict[str, Any]:
    """Fields that the catalogue allows: bounds of their kinds, and what lies between."""
    return {field.name: _value(field.kind, chance) for field in message.fields}


def _value(kind: Kind, chance: Random) -> Any:
    if kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[kind]
        return chance.choice((low, high, 0, 1, 3, chance.randint(low, high)))
    if kind is Kind.BOOL:
        return chance.random() < 0.5
    if kind is Kind.BYTES:
        return chance.randbytes(chance.choice((0, 1, 32, 300)))
    return chance.choice(_TEXTS)


# msgpack


def _msgpack() -> Target:
    chance = Random("msgpack")
    messages = [
        [seq, row.name, *values_of(row, chance).values()]
        for row in CATALOGUE.values()
        for seq in (1, 2, 2, 3, 200, 2**32, 2**64 - 1)
    ]
    seeds = [_packed(values) for values in messages]
    ends = _running_ends()

    def feed(data: bytes, _chance: Random) -> str:
        envelope = msgpack_codec.decode(data)
        seq, message, fields = envelope
        again = msgpack_codec.encode(seq, message.name, fields)
        promise(again == data, f"decoded, but encoded it is {again.hex()}")
        end = copy.copy(ends[message.sender])
        before = (end.state, end.waiting)
        try:
            end.received(envelope)
        except TurnError:
            promise((end.state, end.waiting) == before, "a refused message took a turn")
            return "decoded, out of turn"
        return DECODED

    def inside(chance: Random) -> bytes:
        """An array in shortest form, of values that are right but for one or two."""
        values = list(chance.choice(messages))
        for _ in range(chance.choice((1, 1, 2))):
            place = chance.randrange(len(values) + 1)
            values[place : place + chance.choice((0, 1, 1, 1, 1))] = [chance.choice(_STRANGE)]
        return _packed(values).data

    return Target("msgpack", seeds, feed, weight=9, words=_MSGPACK_WORDS, inside=inside)


def _packed(values: list[Any]) -> Seed:
    """The array, with a mark at each of its elements."""
    whole: bytes = msgpack.packb(values)
    parts = [msgpack.packb(value) for value in values]
    header = whole[: len(whole) - sum(map(len, parts))]
    return joined(header, *parts)


def _running_ends() -> dict[Sender, HelperEnd | ControllerEnd]:
    """By whose messages they hear: both ends of a conversation after `start`, the helper's with a
    callback that waits."""
    secret, nonce = bytes(SECRET_SIZE), bytes(NONCE_SIZE)
    helper = HelperEnd(secret, nonce)
    provided = frozenset(row.name for row in CALLBACKS)
    controller = ControllerEnd(secret, Operation.SAVE, provided)
    helper.sending("hello")
    controller.received(Envelope(1, CATALOGUE["hello"], helper.hello(1)))
    controller.sending("start")
    proof = controller.start_proof()
    helper.received(Envelope(1, CATALOGUE["start"], {"proof": proof}))
    helper.sending("suspend")
    return {Sender.HELPER: controller, Sender.CONTROLLER: helper}


# libxl's pipes


def _pipe_seeds(dialect: Dialect) -> list[Seed]:
    chance = Random(dialect.value)
    return [
        Seed(pipe_codec.encode_message(dialect, row.name, values_of(row, chance)))
        for row in CALLBACKS
        if dialect in row.numbers
        for _ in range(_VARIANTS)
    ]


def _pipe(dialect: Dialect) -> Target:
    def feed(data: bytes, chance: Random) -> str:
        """As the controller does: the header, then the body once it is there."""
        size = pipe_codec.HEADER_SIZE
        if len(data) < size:
            return "half a header"
        length = pipe_codec.decode_header(data[:size])
        body = data[size : size + length]
        if len(body) < length:
            return "half a body"
        operation = chance.choice(tuple(Operation))
        message, fields = pipe_codec.decode_body(dialect, operation, body)
        promise(operation in message.operations, f"{message.name} in a {operation.value}")
        again = pipe_codec.encode_message(dialect, message.name, fields)
        if again != data[: size + length]:
            # Texts that are no UTF-8 are shown, so they do not come back.
            texts = [value for value in fields.values() if isinstance(value, str)]
            promise(any("\\x" in text for text in texts), f"decoded, but encoded it is {again!r}")
            promise(not _is_utf8(body), f"text was changed without need: {texts}")
        return DECODED

    seeds = _pipe_seeds(dialect)
    bodies = [Seed(seed.data[pipe_codec.HEADER_SIZE :]) for seed in seeds]

    def inside(chance: Random) -> bytes:
        """A mutated body, and its true length."""
        body = mutate(chance, bodies, _PIPE_WORDS)[:MAX_BODY]
        return len(body).to_bytes(pipe_codec.HEADER_SIZE, sys.byteorder) + body

    return Target(f"pipe, {dialect.value}", seeds, feed, 3, _PIPE_WORDS, inside)


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Listener:
    """Answers callbacks at once, most of them, and keeps what was heard."""

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self.controller: PipeController | None = None
        self.messages: list[Message] = []
        self.violations: list[str] = []
        self.ends: list[str] = []
        self._unanswered = False
        self.faults: list[BaseException] = []
        self.over = asyncio.Event()

    def fault(self, _loop: object, context: dict[str, Any]) -> None:
        """The loop would only log what a reader of the pipe raises."""
        self.faults.append(context.get("exception") or RuntimeError(context["message"]))
        self.over.set()

    def hello(self) -> None:
        pass

    def message(self, message: Message, fields: dict[str, Any]) -> None:
        """As SaveHelper: `complete` is the last that is heard."""
        promise(not self.over.is_set(), f"{message.name} is heard after the end")
        promise(
            {field.name for field in message.fields} == set(fields), f"{message.name}: {fields}"
        )
        self.messages.append(message)
        assert self.controller is not None
        promise(message.answer is Answer.NONE or not self._unanswered, "two callbacks wait")
        if message.answer is not Answer.NONE:
            self._unanswered = self._chance.random() < 0.05
            if not self._unanswered:
                self.controller.answer(message, 0)
        if message.name == "complete":
            self.controller.stop_listening()
            self.over.set()

    def violation(self, reason: str) -> None:
        assert self.controller is not None
        self.violations.append(reason)
        self.controller.stop_listening()
        self.over.set()

    def lost(self, reason: str) -> None:
        self.ends.append(reason)
        self.over.set()

    def stranger(self, reason: str) -> None:
        promise(False, f"a stranger on a pipe: {reason}")


def _conversation(dialect: Dialect) -> Target:
    """What a helper writes into its pipe, in any pieces, heard by our controller."""
    chance = Random(f"conversation, {dialect.value}")
    rows = [
        row
        for row in CALLBACKS
        if dialect in row.numbers and Operation.SAVE in row.operations and row.name != "complete"
    ]
    seeds = []
    for length in range(12):
        said = [*chance.choices(rows, k=length), CATALOGUE["complete"]]
        octets = (
            pipe_codec.encode_message(dialect, row.name, values_of(row, chance)) for row in said
        )
        seeds.append(joined(*octets))
    runner = asyncio.Runner()

    async def converse(data: bytes, chance: Random) -> str:
        listener = _Listener(chance)
        asyncio.get_running_loop().set_exception_handler(listener.fault)
        arguments = HelperArguments(HelperRequest(Operation.SAVE, domid=1, io_fd=1), dialect)
        provided = frozenset(row.name for row in rows if chance.random() < 0.97)
        controller = listener.controller = PipeController(arguments, provided, listener)
        given = controller.process_arguments
        assert given.stdin is not None
        assert given.stdout is not None
        answers, messages = os.dup(given.stdin), os.dup(given.stdout)
        try:
            controller.listen()
            rest = memoryview(data[:_PIPE_SIZE])
            while rest and not listener.over.is_set():
                piece = chance.choice((1, 2, 3, 7, 64, 4096))
                rest = rest[os.write(messages, rest[:piece]) :]
                await asyncio.sleep(0)
            os.close(messages)
            messages = -1
            await listener.over.wait()
        finally:
            controller.close()
            for fd in (answers, messages):
                if fd >= 0:
                    os.close(fd)
        for fault in listener.faults:
            raise fault
        completed = sum(message.name == "complete" for message in listener.messages)
        ends = completed + len(listener.violations) + len(listener.ends)
        promise(ends == 1, f"{completed=} {listener.violations} {listener.ends}")
        for reason in (*listener.violations, *listener.ends):
            promise(reason.isprintable() and len(reason) > 20, f"says little: {reason!r}")
        if completed:
            return "heard to its end"
        if not listener.violations:
            return "the pipe was closed"
        return "heard some, then a violation" if listener.messages else "a violation at once"

    def feed(data: bytes, chance: Random) -> str:
        return runner.get_loop().run_until_complete(converse(data, chance))

    return Target(
        f"conversation, {dialect.value}",
        seeds,
        feed,
        weight=1,
        words=_PIPE_WORDS,
        close=runner.close,
    )
