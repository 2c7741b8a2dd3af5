"""Messages on libxl's pipes, in machine endianness and without padding (libxl_save_msgs_gen.pl).

Helper to libxl: u16 length of the body; the body is a u16 message number and the arguments. libxl
to helper: one C int, only for a message that has an answer. The numbers differ between the
dialects, the arguments do not (`struct precopy_stats` by value is its three ints in a row).
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Final

from construct import (
    Adapter,
    Construct,
    ConstructError,
    GreedyBytes,
    Int16un,
    Int32sn,
    Int32un,
    Int64sn,
    Int64un,
    Prefixed,
    Struct,
    ValidationError,
)

from ipc_schema.errors import DecodeError
from ipc_schema.field_checks import checked_values
from ipc_schema.messages import (
    CALLBACKS,
    CATALOGUE,
    MAX_BODY,
    Dialect,
    Kind,
    Message,
    Operation,
    by_number,
)

HEADER_SIZE: Final = 2
"""Octets of the length in front of each body."""
ANSWER_SIZE: Final = 4
"""Octets of an answer, a C int."""


class _CString(Adapter):  # type: ignore[misc]
    """STRING: u32 length including the NUL, the octets, the NUL.

    Octets that are no UTF-8 (messages of the C library in another locale) are shown as `\\xNN`.
    """

    def _decode(self, obj: bytes, context: object, path: str) -> str:
        if not obj.endswith(b"\0"):
            raise ValidationError("no NUL at its end", path=path)
        if obj.index(b"\0") != len(obj) - 1:
            raise ValidationError("a NUL before its end", path=path)
        return obj[:-1].decode(errors="backslashreplace")

    def _encode(self, obj: str, context: object, path: str) -> bytes:
        data = obj.encode()
        if b"\0" in data:
            raise ValidationError("a NUL in it", path=path)
        return data + b"\0"


_KINDS: Final[Mapping[Kind, Construct]] = {
    Kind.U32: Int32un,
    Kind.UNSIGNED: Int32un,
    Kind.INT: Int32sn,
    Kind.LONG: Int64sn,
    Kind.ULONG: Int64un,
    Kind.PFN: Int64un,
    Kind.STRING: _CString(Prefixed(Int32un, GreedyBytes)),
}
_ARGUMENTS: Final[Mapping[str, Construct]] = {
    row.name: Struct(*(field.name / _KINDS[field.kind] for field in row.fields))
    for row in CALLBACKS
}
_BY_NUMBER: Final = {dialect: by_number(dialect) for dialect in Dialect}


def encode_message(dialect: Dialect, name: str, fields: Mapping[str, object]) -> bytes:
    """A message with its length in front. Raises ValueError for what the catalogue does not allow
    and for messages that the dialect does not have."""
    checked_values(name, fields)
    number = CATALOGUE[name].numbers.get(dialect)
    if number is None:
        raise ValueError(f"{name}: dialect {dialect.value} has no such message")
    try:
        body = Int16un.build(number) + _ARGUMENTS[name].build(dict(fields))
    except ConstructError as bad:
        raise ValueError(f"{name}: {_problem(bad)}") from None
    if len(body) > MAX_BODY:
        raise ValueError(f"{name}: {len(body)} octets, want at most {MAX_BODY}")
    return bytes(Int16un.build(len(body)) + body)


def decode_header(data: bytes) -> int:
    """The length of the body that follows. `data` is HEADER_SIZE octets."""
    length = int(Int16un.parse(data))
    if length < 2:
        raise DecodeError("pipe message", 0, f"body of {length} octets, want at least 2")
    return length


def decode_body(
    dialect: Dialect, operation: Operation, body: bytes
) -> tuple[Message, dict[str, Any]]:
    """The message in a body (without its length) and its fields. Raises DecodeError."""
    what = "pipe message"
    if not 2 <= len(body) <= MAX_BODY:
        raise DecodeError(what, 0, f"body of {len(body)} octets, want 2 to {MAX_BODY}")
    stream = io.BytesIO(body)
    number = Int16un.parse_stream(stream)
    message = _BY_NUMBER[dialect].get(number)
    if message is None:
        raise DecodeError(what, 0, f"number {number}: dialect {dialect.value} has no such message")
    what = f"pipe message {message.name}"
    if operation not in message.operations:
        raise DecodeError(what, 0, f"not part of a {operation.value}")
    try:
        parsed = _ARGUMENTS[message.name].parse_stream(stream)
    except ConstructError as bad:
        raise DecodeError(what, stream.tell(), _problem(bad)) from None
    if rest := len(body) - stream.tell():
        raise DecodeError(what, stream.tell(), f"{rest} octets too many")
    return message, {field.name: parsed[field.name] for field in message.fields}


def encode_answer(value: int) -> bytes:
    """An answer. Raises ValueError for a value that is no C int."""
    try:
        return bytes(Int32sn.build(value))
    except ConstructError:
        raise ValueError(f"answer {value!r} is no C int") from None


def decode_answer(data: bytes) -> int:
    """`data` is ANSWER_SIZE octets."""
    return int(Int32sn.parse(data))


def _problem(bad: ConstructError) -> str:
    """construct's account in one line: the field, and what is wrong with it."""
    text = str(bad).splitlines()[-1]
    field = (bad.path or "").rsplit("-> ", 1)[-1]
    return f"{field}: {text.removeprefix(f'Error in path {bad.path}')}".strip()
