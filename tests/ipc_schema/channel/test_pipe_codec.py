from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.ipc_schema.channel.catalogue_values import fields_of
from xen_save_helper.ipc_schema.channel.messages import (
    CALLBACKS,
    CATALOGUE,
    MAX_BODY,
    Dialect,
    Message,
    Operation,
)
from xen_save_helper.ipc_schema.channel.pipe_codec import (
    HEADER_SIZE,
    decode_answer,
    decode_body,
    decode_header,
    encode_answer,
    encode_message,
)
from xen_save_helper.ipc_schema.errors import DecodeError

DIALECTS = st.sampled_from(list(Dialect))


def a_message(dialect: Dialect) -> st.SearchStrategy[Message]:
    return st.sampled_from([row for row in CALLBACKS if dialect in row.numbers])


def any_operation(message: Message) -> Operation:
    return min(message.operations, key=lambda operation: operation.value)


@given(st.data(), DIALECTS)
def test_what_is_encoded_is_decoded(data: st.DataObject, dialect: Dialect) -> None:
    message = data.draw(a_message(dialect))
    fields = data.draw(fields_of(message))
    data = encode_message(dialect, message.name, fields)
    assert decode_header(data[:HEADER_SIZE]) == len(data) - HEADER_SIZE
    decoded = decode_body(dialect, any_operation(message), data[HEADER_SIZE:])
    assert decoded == (message, fields)


@pytest.mark.parametrize(
    ("dialect", "name", "fields", "data"),
    [
        (Dialect.MAINLINE, "suspend", {}, struct.pack("=HH", 2, 3)),
        (
            Dialect.MAINLINE,
            "log",
            {"level": 1, "errnoval": 2**32 - 1, "context": "xc", "formatted": "hi"},
            struct.pack("=HHIII3sI3s", 24, 1, 1, 2**32 - 1, 3, b"xc\0", 3, b"hi\0"),
        ),
        (
            Dialect.MAINLINE,
            "complete",
            {"retval": -1, "errnoval": 32},
            struct.pack("=HHii", 10, 10, -1, 32),
        ),
        (
            Dialect.MAINLINE_4_7,
            "complete",
            {"retval": 0, "errnoval": 0},
            struct.pack("=HHii", 10, 9, 0, 0),
        ),
        (
            Dialect.MAINLINE,
            "restore_results",
            {"store_gfn": 0xFEFFC, "console_gfn": 0xFEFFF},
            struct.pack("=HHQQ", 18, 9, 0xFEFFC, 0xFEFFF),
        ),
        (
            Dialect.SERIES,
            "precopy_policy",
            {"iteration": 2, "total_written": 4096, "dirty_count": -1},
            struct.pack("=HHIIi", 14, 10, 2, 4096, -1),
        ),
        (
            Dialect.SERIES,
            "progress",
            {"context": "", "doing_what": "x", "done": 1, "total": 2},
            struct.pack("=HHI1sI2sQQ", 29, 2, 1, b"\0", 2, b"x\0", 1, 2),
        ),
    ],
)
def test_the_bytes_are_libxls(
    dialect: Dialect, name: str, fields: dict[str, object], data: bytes
) -> None:
    assert encode_message(dialect, name, fields) == data


@given(DIALECTS, st.sampled_from(list(Operation)), st.binary(max_size=100))
def test_garbage_is_a_decode_error_or_a_message(
    dialect: Dialect, operation: Operation, body: bytes
) -> None:
    try:
        message, fields = decode_body(dialect, operation, body)
    except DecodeError:
        return
    assert operation in message.operations
    assert set(fields) == {field.name for field in message.fields}


@given(st.data(), DIALECTS)
def test_a_body_that_is_too_short_or_too_long_is_refused(
    data: st.DataObject, dialect: Dialect
) -> None:
    message = data.draw(a_message(dialect))
    body = encode_message(dialect, message.name, data.draw(fields_of(message)))[HEADER_SIZE:]
    operation = any_operation(message)
    cut = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(DecodeError):
        decode_body(dialect, operation, body[:cut])
    with pytest.raises(DecodeError):
        decode_body(dialect, operation, body + b"\0")


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (struct.pack("=H", 99), "number 99"),
        (struct.pack("=H", 11), "number 11: dialect mainline has no such message"),
        (struct.pack("=HQQ", 9, 1, 2), "not part of a save"),
        (struct.pack("=HIII2s", 1, 1, 0, 2, b"ab"), "no NUL at the end"),
        (struct.pack("=HIII", 1, 1, 0, 0), "no NUL at the end"),
        (struct.pack("=HIII3s", 1, 1, 0, 3, b"a\0\0"), "a NUL before the end"),
        (struct.pack("=HIII", 1, 1, 0, 2**32 - 1), "expected 4294967295"),
        (b"\x03", "want 2 to 65535"),
    ],
)
def test_the_error_names_what_is_wrong(body: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        decode_body(Dialect.MAINLINE, Operation.SAVE, body)


def test_a_header_without_room_for_a_number_is_refused() -> None:
    with pytest.raises(DecodeError, match="body of 1 bytes"):
        decode_header(struct.pack("=H", 1))


def test_text_that_is_no_utf8_is_shown() -> None:
    body = struct.pack("=HIII1sI3s", 1, 8, 0, 1, b"\0", 3, b"\xe9t\0")
    _message, fields = decode_body(Dialect.MAINLINE, Operation.SAVE, body)
    assert fields["formatted"] == "\\xe9t"


@pytest.mark.parametrize(
    ("dialect", "name"),
    [(Dialect.MAINLINE, "precopy_policy"), (Dialect.SERIES, "static_data_done")],
)
def test_a_message_that_the_dialect_lacks_is_not_encoded(dialect: Dialect, name: str) -> None:
    fields = {field.name: 0 for field in CATALOGUE[name].fields}
    with pytest.raises(ValueError, match="has no such message"):
        encode_message(dialect, name, fields)


def test_a_channel_message_is_not_encoded() -> None:
    with pytest.raises(ValueError, match="has no such message"):
        encode_message(Dialect.SERIES, "refused", {"reason": "x"})


def test_a_message_over_the_limit_is_not_encoded() -> None:
    fields = {"level": 1, "errnoval": 0, "context": "", "formatted": "x" * MAX_BODY}
    with pytest.raises(ValueError, match="want at most 65535"):
        encode_message(Dialect.MAINLINE, "log", fields)


def test_a_nul_in_a_text_is_not_encoded() -> None:
    fields = {"level": 1, "errnoval": 0, "context": "a\0b", "formatted": ""}
    with pytest.raises(ValueError, match="context contains a NUL"):
        encode_message(Dialect.MAINLINE, "log", fields)


@given(st.integers(-(2**31), 2**31 - 1))
def test_an_answer_is_one_int(value: int) -> None:
    assert encode_answer(value) == struct.pack("=i", value)
    assert decode_answer(encode_answer(value)) == value


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_an_answer_that_is_no_int_is_not_encoded(value: int) -> None:
    with pytest.raises(ValueError, match="not a C int"):
        encode_answer(value)
