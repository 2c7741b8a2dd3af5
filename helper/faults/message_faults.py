"""What a fault does to an encoded message on its way out: pure functions for each encoding.

Each takes a message's bytes and returns the messages that go in its place.
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

Mangle = Callable[[bytes, Random], list[bytes]]

_NO_SUCH_NAME: Final = "no_such_message"
_NO_SUCH_NUMBER: Final = 0xFFFF
_NEVER_USED: Final = b"\xc1"
"""The one byte that begins nothing in msgpack."""
_U16: Final = Struct("=H")


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
"""Without `reorder`: see `message_points`."""

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


def mangled(
    mangles: Mapping[str, Mangle], messages: Sequence[bytes], firing: Firing
) -> list[bytes]:
    """The messages that go in the place of `messages`."""
    mangle = mangles[firing.fault.action.kind.name]
    return [made for one in messages for made in mangle(one, firing.random)]
