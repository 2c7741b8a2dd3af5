"""What faults make of a message or record: a table for each encoding, of pure functions.

Each takes the bytes of one and returns those that go in its place, none, one or two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from struct import Struct
from typing import Final

import msgpack

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.ipc_schema.channel import msgpack_codec, pipe_codec
from xen_save_helper.ipc_schema.channel.messages import MAX_BODY
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE, MAX_LENGTH

Mangle = Callable[[bytes, Random], list[bytes]]

_NO_SUCH_NAME: Final = "no_such_message"
_NO_SUCH_NUMBER: Final = 0xFFFF
_NEVER_USED: Final = b"\xc1"
"""The one byte that begins nothing in msgpack."""
_U16: Final = Struct("=H")
_NO_SUCH_TYPE: Final = 0x7FFFFF00
"""An unknown type that nobody may skip: bit 31 is clear."""


def _zmq_wrong_sequence(data: bytes, _random: Random) -> list[bytes]:
    seq, message, fields = msgpack_codec.decode(data)
    return [msgpack_codec.encode(seq + 1, message.name, fields)]


def _zmq_wrong_number(data: bytes, _random: Random) -> list[bytes]:
    seq, _name, *values = msgpack.unpackb(data)
    return [msgpack.packb([seq, _NO_SUCH_NAME, *values])]


def _pipe(body: bytes) -> list[bytes]:
    return [_U16.pack(len(body)) + body]


def _body(data: bytes) -> bytes:
    return data[pipe_codec.HEADER_SIZE :]


_ANY: Final[Mapping[str, Mangle]] = {
    actions.DROP.name: lambda _data, _random: [],
    actions.DUPLICATE.name: lambda data, _random: [data, data],
    actions.TRUNCATE.name: lambda data, _random: [data[: len(data) // 2]],
}

ON_LINK: Final[Mapping[str, Mangle]] = {
    **_ANY,
    actions.GARBAGE.name: lambda data, random: [random.randbytes(len(data))],
}
"""The actions on messages of the handshake, by name, as in the other tables."""

ON_ZMQ: Final[Mapping[str, Mangle]] = {
    **_ANY,
    actions.GARBAGE.name: lambda data, random: [_NEVER_USED + random.randbytes(len(data) - 1)],
    actions.OVERSIZE.name: lambda data, _random: [data.ljust(MAX_BODY + 1, b"\0")],
    actions.WRONG_SEQUENCE.name: _zmq_wrong_sequence,
    actions.WRONG_NUMBER.name: _zmq_wrong_number,
}
"""Without `reorder`, which is about two: see `message_points`, `octets`."""

ON_PIPE: Final[Mapping[str, Mangle]] = {
    **_ANY,
    # An unknown number, so that chance does not make a message of it.
    actions.GARBAGE.name: lambda data, random: _pipe(
        _U16.pack(_NO_SUCH_NUMBER) + random.randbytes(len(_body(data)) - _U16.size)
    ),
    actions.OVERSIZE.name: lambda data, _random: _pipe(_body(data).ljust(MAX_BODY, b"\0")),
    actions.WRONG_NUMBER.name: lambda data, _random: _pipe(
        _U16.pack(_NO_SUCH_NUMBER) + _body(data)[_U16.size :]
    ),
}
"""The actions on libxl's pipes: only `truncate` breaks the frame. `oversize` is as long as a frame
can be, which no message is."""


def _first_half(record: bytes, _random: Random) -> list[bytes]:
    """The header, and half of the body if there is one."""
    whole = HEADER_SIZE if len(record) > HEADER_SIZE else 0
    return [record[: whole + (len(record) - whole) // 2]]


def _garbled(record: bytes, random: Random) -> list[bytes]:
    whole = HEADER_SIZE if len(record) > HEADER_SIZE else 0
    return [record[:whole] + random.randbytes(len(record) - whole)]


def _relabelled(record: bytes, number: int | None = None, length: int | None = None) -> list[bytes]:
    if len(record) < HEADER_SIZE:
        return [record]  # another fault has truncated it
    own_number, own_length = HEADER.unpack_from(record)
    header = HEADER.pack(
        own_number if number is None else number, own_length if length is None else length
    )
    return [header + record[HEADER_SIZE:]]


ON_RECORD: Final[Mapping[str, Mangle]] = {
    **_ANY,
    actions.TRUNCATE.name: _first_half,
    actions.GARBAGE.name: _garbled,
    actions.OVERSIZE.name: lambda record, _random: _relabelled(record, length=MAX_LENGTH + 8),
    actions.WRONG_NUMBER.name: lambda record, _random: _relabelled(record, number=_NO_SUCH_TYPE),
}
"""The actions on records of either stream."""


def mangled(
    mangles: Mapping[str, Mangle], messages: Sequence[bytes], firing: Firing
) -> list[bytes]:
    """The messages that go in the place of `messages`."""
    mangle = mangles[firing.fault.action.kind.name]
    return [made for one in messages for made in mangle(one, firing.random)]
