"""A receiver's verdict: it is read as it was sent, and a lying peer is held to the limits."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.ipc_schema.streams.xl_handshake import (
    MAX_REASON,
    VERDICT,
    VERDICT_SIZE,
    Verdict,
    decode_reason,
    decode_verdict_head,
    encode_verdict,
)


def decode(data: bytes) -> Verdict:
    assert data.startswith(VERDICT.data)
    place = len(VERDICT.data)
    rc, length = decode_verdict_head(data[place : place + VERDICT_SIZE])
    assert len(data) == place + VERDICT_SIZE + length
    return Verdict(rc, decode_reason(data[place + VERDICT_SIZE :]))


def test_the_bytes_of_a_refusal() -> None:
    assert encode_verdict(Verdict(-5, "no room")) == VERDICT.data + b"\5" + b"\7\0" + b"no room"
    assert encode_verdict(Verdict(0, "")) == VERDICT.data + b"\0\0\0"
    assert VERDICT.data.endswith(b"\0")


LINE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=200)


@given(st.integers(-254, -1), LINE)
def test_a_refusal_comes_as_it_was_said(rc: int, reason: str) -> None:
    assert decode(encode_verdict(Verdict(rc, reason))) == Verdict(rc, reason)


@given(st.integers(-(2**31), 2**31), st.text(min_size=1))
def test_whatever_is_said_is_within_the_bounds(rc: int, reason: str) -> None:
    verdict = decode(encode_verdict(Verdict(rc, reason)))
    assert (verdict.rc == 0) == (rc == 0)
    assert len(verdict.reason.encode()) <= MAX_REASON
    assert verdict.reason.isprintable()


@given(st.binary(min_size=VERDICT_SIZE, max_size=VERDICT_SIZE))
def test_a_length_is_within_its_bounds_or_refused(data: bytes) -> None:
    code, length = struct.unpack("<BH", data)
    if (length == 0) if code == 0 else (0 < length <= MAX_REASON):
        rc, told = decode_verdict_head(data)
        assert (rc == 0, told) == (code == 0, length)
    else:
        with pytest.raises(DecodeError, match="with a reason of"):
            decode_verdict_head(data)


@given(st.binary(max_size=MAX_REASON))
def test_a_reason_is_one_line_or_refused(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        with pytest.raises(DecodeError, match="not UTF-8"):
            decode_reason(data)
        return
    told = decode_reason(data)
    assert told.isprintable()
    assert set(told) <= {*text, " "}


def test_the_header_carries_what_the_sender_asks() -> None:
    flags = xl_header.OPTIONAL_VERDICT | xl_header.OPTIONAL_POSTCOPY
    assert xl_header.decode(xl_header.encode_header(b"{}", flags)).optional_flags == flags
    assert xl_header.decode(xl_header.encode_header(b"{}")).optional_flags == 0
