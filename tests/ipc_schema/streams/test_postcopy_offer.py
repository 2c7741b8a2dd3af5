"""Where a page server is, and the keys for it."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer, decode, encode

OFFER = PostcopyOffer("192.0.2.7", 4567, "s" * 40, "c" * 40, "k" * 40)


def test_it_comes_back() -> None:
    assert decode(encode(OFFER), 0) == OFFER


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("address", ""),
        ("address", 7),
        ("address", "a\0b"),
        ("port", 0),
        ("port", 1 << 16),
        ("port", "4567"),
        ("server_key", "short"),
        ("client_key", b"c" * 40),
        ("client_secret", "\u00e4" * 40),
    ],
)
def test_what_cannot_be_one_is_refused(field: str, value: object) -> None:
    with pytest.raises(DecodeError, match=r"POSTCOPY_OFFER.*0x10"):
        decode(msgpack.packb({**OFFER._asdict(), field: value}), 16)


@given(st.binary(max_size=64))
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(body, 0)


def test_fields_that_nobody_knows_are_refused() -> None:
    with pytest.raises(DecodeError):
        decode(msgpack.packb({**OFFER._asdict(), "more": 1}), 0)
    with pytest.raises(DecodeError):
        decode(encode(OFFER) + bytes(5000), 0)
