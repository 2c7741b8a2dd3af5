"""The frame of a record, which the libxl and the libxc stream share.

u32 type, u32 body length, the body, zeros up to a multiple of 8 bytes; little-endian. A type with
bit 31 is optional: a reader that does not know it skips it. Any other unknown type is an error.
The specifications let a restore ignore padding and reserved fields; every decoder here refuses
anything but zeros, as Xen's verify-stream-v2 does, because only damage puts it there.
"""

from __future__ import annotations

import struct

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final

HEADER_SIZE: Final = 8
ALIGNMENT: Final = 8
MAX_LENGTH: Final = 128 << 20
"""Bytes in a body with its padding: REC_LENGTH_MAX of xg_sr_stream_format.h. libxl's stream has no
limit of its own; its bodies stay below this one too."""
OPTIONAL: Final = 0x80000000
"""REC_TYPE_OPTIONAL."""

HEADER: Final = struct.Struct("<II")
"""Type and body length."""


def padding(length: int) -> int:
    """Bytes of padding (0 to 7) after a body of `length` bytes."""
    return -length % ALIGNMENT


def encode_record_header(record_type: int, length: int) -> bytes:
    """Encode the header of a record whose body has `length` bytes. Raises ValueError above
    MAX_LENGTH."""
    if not 0 <= length <= MAX_LENGTH:
        raise ValueError(f"record body of {length} bytes, want at most {MAX_LENGTH}")
    try:
        return HEADER.pack(record_type, length)
    except struct.error:
        raise ValueError(f"record type {record_type:#x} is not a u32") from None


def decode_record_header(data: bytes, what: str, offset: int) -> tuple[int, int]:
    """Type and body length in the HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for a length above MAX_LENGTH. The type is any u32.
    """
    check_size(data, HEADER_SIZE, f"{what} header", offset)
    record_type, length = HEADER.unpack(data)
    if length > MAX_LENGTH:
        raise DecodeError(
            what,
            offset + 4,
            f"body of {length} bytes in a record of type {record_type:#x}, "
            f"want at most {MAX_LENGTH}",
        )
    return record_type, length


def encode_record(record_type: int, body: bytes) -> bytes:
    """Encode a whole record: header, body, padding. Raises ValueError if the body is too long."""
    return encode_record_header(record_type, len(body)) + body + bytes(padding(len(body)))


def check_padding(data: bytes, what: str, offset: int) -> None:
    """Raise DecodeError unless `data`, the padding of a record at `offset`, is all zeros."""
    rest = data.lstrip(b"\0")
    if rest:
        place = offset + len(data) - len(rest)
        raise DecodeError(f"{what} padding", place, f"byte {rest[0]:#04x}, want 0")


def check_size(data: bytes, size: int, what: str, offset: int) -> None:
    """Raise DecodeError unless `data` has `size` bytes."""
    if len(data) != size:
        raise DecodeError(what, offset, f"{len(data)} bytes, want {size}")
