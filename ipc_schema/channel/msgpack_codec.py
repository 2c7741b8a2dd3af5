"""Messages on ZeroMQ: one msgpack array, `[seq, name, field values in the catalogue's order]`.

`seq` counts a sender's messages from 1. The decoder accepts only what the encoder would have
written, byte for byte: an integer in a longer form than it needs, a map, or a trailing byte is an
error. Lengths are bounded before anything is allocated for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgpack

from xen_save_helper.ipc_schema.channel.field_checks import FIELD_NAMES, checked_values, misfit
from xen_save_helper.ipc_schema.channel.messages import CATALOGUE, MAX_BODY, Message
from xen_save_helper.ipc_schema.errors import DecodeError

_WHAT: Final = "message"
_MAX_SEQ: Final = 2**64 - 1
_pack: Final = msgpack.Packer().pack
"""Kept, because every new Packer allocates a buffer of a megabyte."""
_MAX_ELEMENTS: Final = 2 + max(len(row.fields) for row in CATALOGUE.values())


class Envelope(NamedTuple):
    seq: int
    message: Message
    fields: dict[str, Any]


def encode(seq: int, name: str, fields: Mapping[str, object]) -> bytes:
    """Encode a message. Raises ValueError for what the catalogue does not allow, and for more than
    MAX_BODY bytes."""
    if not 1 <= seq <= _MAX_SEQ:
        raise ValueError(f"sequence number {seq}: want 1 to {_MAX_SEQ}")
    data: bytes = _pack([seq, name, *checked_values(name, fields)])
    if len(data) > MAX_BODY:
        raise ValueError(f"{name}: {len(data)} bytes, want at most {MAX_BODY}")
    return data


def decode(data: bytes) -> Envelope:
    """Decode a message. Raises DecodeError, and nothing else, if `data` is not one."""
    if len(data) > MAX_BODY:
        raise DecodeError(_WHAT, 0, f"{len(data)} bytes, want at most {MAX_BODY}")
    try:
        values = msgpack.unpackb(
            data,
            raw=False,
            max_str_len=MAX_BODY,
            max_bin_len=MAX_BODY,
            max_array_len=_MAX_ELEMENTS,
            max_map_len=0,
            max_ext_len=0,
        )
        canonical = type(values) is list and _pack(values) == data
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException) as bad:
        raise DecodeError(_WHAT, 0, f"not msgpack: {str(bad) or type(bad).__name__}") from None
    if not canonical:
        raise DecodeError(_WHAT, 0, "not an array in msgpack's shortest form")
    if len(values) < 2 or type(values[0]) is not int or type(values[1]) is not str:
        raise DecodeError(_WHAT, 0, "want an array of sequence number, name, fields")
    seq, name, *given = values
    if not 1 <= seq <= _MAX_SEQ:
        raise DecodeError(_WHAT, _offset(values, 0), f"sequence number {seq}: want 1 or more")
    names = FIELD_NAMES.get(name)
    if names is None:
        raise DecodeError(_WHAT, _offset(values, 1), f"{name[:80]!r}: no such message")
    if len(given) != len(names):
        problem = f"{len(given)} fields, want {len(names)}"
        raise DecodeError(f"message {name}", _offset(values, 2), problem)
    if wrong := misfit(name, given):
        index, problem = wrong
        raise DecodeError(
            f"message {name}", _offset(values, 2 + index), f"{names[index]}: {problem}"
        )
    return Envelope(seq, CATALOGUE[name], dict(zip(names, given, strict=True)))


def _offset(values: list[object], index: int) -> int:
    """Where element `index` of an array in shortest form starts."""
    header = 1 if len(values) < 16 else 3
    return header + sum(len(_pack(value)) for value in values[:index])
