from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.ipc_schema.channel.catalogue_values import fields_of
from xen_save_helper.ipc_schema.channel.messages import (
    CATALOGUE,
    INTEGER_RANGES,
    MAX_BODY,
    Message,
    PrecopyPolicy,
)
from xen_save_helper.ipc_schema.channel.msgpack_codec import decode, encode
from xen_save_helper.ipc_schema.errors import DecodeError

MESSAGES = st.sampled_from(list(CATALOGUE.values()))
REPLY = encode(1, "reply", {"to": 3, "value": -1})


@given(st.data(), MESSAGES, st.integers(1, 2**64 - 1))
def test_what_is_encoded_is_decoded(data: st.DataObject, message: Message, seq: int) -> None:
    fields = data.draw(fields_of(message))
    envelope = decode(encode(seq, message.name, fields))
    assert envelope == (seq, message, fields)


@given(st.binary(max_size=200))
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdb\xff\xff\xff\xff")
@example(b"\x91" * 5000)
@example(b"\x81\x01\x02")
@example(b"\xc1")
@example(b"\xd6\xff\x00\x00\x00\x00")
def test_bytes_that_are_not_a_message_are_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


@given(st.data(), MESSAGES)
def test_a_changed_message_is_refused_or_says_exactly_what_it_is(
    data: st.DataObject, message: Message
) -> None:
    changed = bytearray(encode(7, message.name, data.draw(fields_of(message))))
    index = data.draw(st.integers(0, len(changed) - 1))
    changed[index] = data.draw(st.integers(0, 255))
    try:
        seq, decoded, fields = decode(bytes(changed))
    except DecodeError:
        return
    assert encode(seq, decoded.name, fields) == changed


@pytest.mark.parametrize("cut", range(len(REPLY)))
def test_a_part_of_a_message_is_refused(cut: int) -> None:
    with pytest.raises(DecodeError):
        decode(REPLY[:cut])


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ([1, "reply", 3, -1, 5], "3 fields, want 2"),
        ([1, "reply", 3], "1 fields, want 2"),
        ([1, "nonsense"], "no such message"),
        ([1], "want an array of sequence number, name"),
        (["reply", 1, 3, -1], "want an array of sequence number, name"),
        ([True, "reply", 3, -1], "want an array of sequence number, name"),
        ([0, "reply", 3, -1], "sequence number 0"),
        ([-1, "reply", 3, -1], "sequence number -1"),
        ([1, "reply", 3, True], "value: bool, want int"),
        ([1, "reply", 3, 1.0], "value: float, want int"),
        ([1, "reply", 3, None], "value: NoneType, want int"),
        ([1, "reply", "3", -1], "to: str, want int"),
        ([1, "reply", 3, 2**31], "value: 2147483648, want -2147483648 to 2147483647"),
        ([1, "reply", -1, 0], "to: -1, want 0"),
        ([1, "refused", b"bytes"], "reason: bytes, want str"),
        ([1, "refused", [1]], "reason: list, want str"),
    ],
)
def test_the_error_names_what_is_wrong(values: list[Any], what: str) -> None:
    with pytest.raises(DecodeError, match=what):
        decode(msgpack.packb(values))


@pytest.mark.parametrize(
    "data",
    [
        REPLY + b"\x00",
        b"\xdc\x00\x04" + REPLY[1:],  # array 16 where a fixarray would do
        REPLY[:-1] + b"\xd1\xff\xff",  # int 16 for -1
        msgpack.packb({1: 2}),
        msgpack.packb("reply"),
    ],
)
def test_only_the_shortest_form_is_a_message(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


def test_the_error_says_at_which_offset() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(msgpack.packb([1, "reply", 3, "four"]))
    assert caught.value.offset == len(msgpack.packb([1, "reply", 3]))


def test_a_message_over_the_limit_is_not_looked_at() -> None:
    with pytest.raises(DecodeError, match="65536 bytes"):
        decode(b"\x00" * (MAX_BODY + 1))


def test_a_message_over_the_limit_is_not_made() -> None:
    with pytest.raises(ValueError, match="at most 65535"):
        encode(1, "refused", {"reason": "x" * MAX_BODY})


@pytest.mark.parametrize(
    ("name", "fields", "what"),
    [
        ("nonsense", {}, "no such message"),
        ("reply", {"to": 1}, "want"),
        ("reply", {"to": 1, "value": 0, "more": 0}, "want"),
        ("reply", {"to": 1, "valeu": 0}, "value is missing"),
        ("reply", {"to": 1, "value": None}, "value: NoneType"),
        ("reply", {"to": 1, "value": False}, "value: bool"),
        ("reply", {"to": 1, "value": 2**31}, "value: 2147483648"),
    ],
)
def test_what_the_catalogue_does_not_allow_is_not_encoded(
    name: str, fields: dict[str, object], what: str
) -> None:
    with pytest.raises(ValueError, match=what):
        encode(1, name, fields)


def test_names_of_answers_are_sent_as_integers() -> None:
    assert decode(encode(1, "reply", {"to": 1, "value": PrecopyPolicy.ABORT})).fields["value"] == -1


@given(st.data(), MESSAGES)
def test_bounds_of_every_integer_field(data: st.DataObject, message: Message) -> None:
    fields = data.draw(fields_of(message))
    for field in message.fields:
        if field.kind not in INTEGER_RANGES:
            continue
        for value in (INTEGER_RANGES[field.kind][0] - 1, INTEGER_RANGES[field.kind][1] + 1):
            with pytest.raises(ValueError, match=field.name):
                encode(1, message.name, {**fields, field.name: value})
