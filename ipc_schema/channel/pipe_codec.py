"""Messages on libxl's pipes, in machine endianness and without padding (libxl_save_msgs_gen.pl).

Helper to libxl: u16 length of the body; the body is a u16 message number and the arguments. libxl
to helper: one C int, only for a message that has an answer. The numbers differ between the
dialects, the arguments do not (`struct precopy_stats` by value is its three ints in a row).
"""

from __future__ import annotations

from collections.abc import Mapping
from struct import Struct

from xen_save_helper.ipc_schema.channel.field_checks import checked_values
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    MAX_BODY,
    Dialect,
    Field,
    Kind,
    Message,
    Operation,
    by_number,
)
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Any, Final

HEADER_SIZE: Final = 2
"""Bytes in the length in front of each body."""
ANSWER_SIZE: Final = 4
"""Bytes in an answer, a C int."""

_U16: Final = Struct("=H")
_INT: Final = Struct("=i")
_LENGTH: Final = Struct("=I")
"""In front of a STRING: its bytes with the final NUL counted."""
_INTEGERS: Final[Mapping[Kind, Struct]] = {
    Kind.U32: Struct("=I"),
    Kind.UNSIGNED: Struct("=I"),
    Kind.INT: _INT,
    Kind.LONG: Struct("=q"),
    Kind.ULONG: Struct("=Q"),
    Kind.PFN: Struct("=Q"),
}
_BY_NUMBER: Final = {dialect: by_number(dialect) for dialect in Dialect}


def encode_message(dialect: Dialect, name: str, fields: Mapping[str, object]) -> bytes:
    """Encode a message, with its length in front. Raises ValueError for what the catalogue does not
    allow and for messages that the dialect does not have."""
    values = checked_values(name, fields)
    message = CATALOGUE[name]
    number = message.numbers.get(dialect)
    if number is None:
        raise ValueError(f"{name}: dialect {dialect.value} has no such message")
    parts = [_U16.pack(number)]
    for field, value in zip(message.fields, values, strict=True):
        if isinstance(value, str):
            data = value.encode() + b"\0"
            if b"\0" in data[:-1]:
                raise ValueError(f"{name}: {field.name} contains a NUL")
            parts += (_LENGTH.pack(len(data)), data)
        else:
            parts.append(_INTEGERS[field.kind].pack(value))
    body = b"".join(parts)
    if len(body) > MAX_BODY:
        raise ValueError(f"{name}: {len(body)} bytes, want at most {MAX_BODY}")
    return _U16.pack(len(body)) + body


def decode_header(data: bytes) -> int:
    """The length of the body that follows `data`, HEADER_SIZE bytes. Raises DecodeError."""
    length = int(_U16.unpack(data)[0])
    if length < _U16.size:
        raise DecodeError("pipe message", 0, f"body of {length} bytes, want at least 2")
    return length


def decode_body(
    dialect: Dialect, operation: Operation, body: bytes
) -> tuple[Message, dict[str, Any]]:
    """Decode a body (without its length): the message and its fields. Raises DecodeError."""
    what = "pipe message"
    if not _U16.size <= len(body) <= MAX_BODY:
        raise DecodeError(what, 0, f"body of {len(body)} bytes, want 2 to {MAX_BODY}")
    number = _U16.unpack_from(body)[0]
    message = _BY_NUMBER[dialect].get(number)
    if message is None:
        raise DecodeError(what, 0, f"number {number}: dialect {dialect.value} has no such message")
    what = f"pipe message {message.name}"
    if operation not in message.operations:
        raise DecodeError(what, 0, f"not part of a {operation.value}")
    fields: dict[str, Any] = {}
    offset = _U16.size
    for field in message.fields:
        if field.kind is Kind.STRING:
            fields[field.name], offset = _string(what, field, body, offset)
        else:
            integer = _INTEGERS[field.kind]
            _check_room(what, field, body, offset, integer.size)
            fields[field.name] = integer.unpack_from(body, offset)[0]
            offset += integer.size
    if rest := len(body) - offset:
        raise DecodeError(what, offset, f"{rest} bytes too many")
    return message, fields


def encode_answer(value: int) -> bytes:
    """Encode an answer. Raises ValueError if `value` is not a C int."""
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"answer {value!r} is not a C int")
    return _INT.pack(value)


def decode_answer(data: bytes) -> int:
    """Decode an answer of ANSWER_SIZE bytes."""
    return int(_INT.unpack(data)[0])


def _string(what: str, field: Field, body: bytes, offset: int) -> tuple[str, int]:
    """A STRING at `offset`, and where it ends: u32 length including the NUL, the bytes, the NUL.

    Bytes that are not UTF-8 (messages of the C library in another locale) are shown as `\\xNN`.
    """
    _check_room(what, field, body, offset, _LENGTH.size)
    length = _LENGTH.unpack_from(body, offset)[0]
    offset += _LENGTH.size
    _check_room(what, field, body, offset, length)
    data = body[offset : offset + length]
    if not data.endswith(b"\0"):
        raise DecodeError(what, offset, f"{field.name}: no NUL at the end")
    if data.index(b"\0") != length - 1:
        raise DecodeError(what, offset, f"{field.name}: a NUL before the end")
    return data[:-1].decode(errors="backslashreplace"), offset + length


def _check_room(what: str, field: Field, body: bytes, offset: int, size: int) -> None:
    if offset + size > len(body):
        found = len(body) - offset
        raise DecodeError(what, offset, f"{field.name}: expected {size} bytes, found {found}")
