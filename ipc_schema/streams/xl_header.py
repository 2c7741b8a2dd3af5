"""The header that `xl save` and `xl migrate` put in front of a libxl stream (tools/xl/xl.h).

32 bytes of magic; a byte order mark, mandatory flags, optional flags and the length of the
optional data, each a u32; then the optional data: u32 length of the configuration, the
configuration, and anything that a later xl may add. Our writers, like xl's, run on little-endian
hosts.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ul, Struct

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.records import check_size

MAGIC: Final = b"Xen saved domain, xl format\n \0 \r"
BYTE_ORDER: Final = 0x01020304
"""SAVEFILE_BYTEORDER_VALUE."""
MANDATORY_JSON: Final = 1 << 0
"""The configuration is a libxl_domain_config as JSON; else it is xl.cfg text."""
MANDATORY_STREAM_V2: Final = 1 << 1
"""A libxl stream follows; else a bare libxc stream of Xen 4.5 or before."""
MANDATORY_KNOWN: Final = MANDATORY_JSON | MANDATORY_STREAM_V2
OPTIONAL_VERDICT: Final = 1 << 31
"""Ours: the sender reads a verdict (`xl_handshake.VERDICT`) before it sends the stream."""
OPTIONAL_POSTCOPY: Final = 1 << 30
"""Ours: the sender may ask for a postcopy transition."""
OPTIONAL_SPARSE: Final = 1 << 29
"""Ours: the libxc stream leaves out pages of zeros. xl has no optional flags so far and ignores
unknown ones; ours are far from any it is likely to add."""
OPTIONAL_LINK: Final = 1 << 28
"""Ours: the guest's last pages may come over a link of their own, after the migration."""
OPTIONAL_RECEIVING: Final = 1 << 27
"""Ours: the sender waits for `xl_handshake.RECEIVING` before it asks the guest to suspend."""
MAX_OPTIONAL_DATA: Final = 16 << 20
"""xl has no limit. A configuration has some KiB; firmware and device trees are not part of it."""

_LENGTH_SIZE: Final = 4
_HEADER: Final = Struct(
    "magic" / Bytes(len(MAGIC)),
    "byte_order" / Int32ul,
    "mandatory_flags" / Int32ul,
    "optional_flags" / Int32ul,
    "optional_data_len" / Int32ul,
)
HEADER_SIZE: Final[int] = _HEADER.sizeof()


@dataclass(frozen=True)
class HeaderFields:
    """`struct save_file_header` without its constant fields."""

    mandatory_flags: int
    optional_flags: int
    optional_data_len: int


@dataclass(frozen=True)
class XLHeader:
    """A whole header. `config` is as xl stored it, mostly JSON with a NUL at its end."""

    mandatory_flags: int
    optional_flags: int
    config: bytes


def encode_header(config: bytes, optional_flags: int = 0) -> bytes:
    """Encode the header with the JSON `config` (save_domain_core_writeconfig) and OPTIONAL_* flags.

    xl ends the text with a NUL and counts it; one is added if it is missing. Raises ValueError for
    an empty configuration and one above MAX_OPTIONAL_DATA.
    """
    text = config if config.endswith(b"\0") else config + b"\0"
    length = _LENGTH_SIZE + len(text)
    if len(text) == 1 or length > MAX_OPTIONAL_DATA:
        raise ValueError(
            f"configuration of {len(text)} bytes, want 2 to {MAX_OPTIONAL_DATA - _LENGTH_SIZE}"
        )
    header = _HEADER.build(
        {
            "magic": MAGIC,
            "byte_order": BYTE_ORDER,
            "mandatory_flags": MANDATORY_KNOWN,
            "optional_flags": optional_flags,
            "optional_data_len": length,
        }
    )
    return bytes(header) + bytes(Int32ul.build(len(text))) + text


def decode_header(data: bytes, offset: int = 0) -> HeaderFields:
    """Decode the HEADER_SIZE bytes `data` at `offset`.

    Unknown optional flags are accepted, as by xl. Raises DecodeError for a wrong magic or byte
    order, unknown mandatory flags, and too much optional data.
    """
    what = "xl header"
    check_size(data, HEADER_SIZE, what, offset)
    fields = _HEADER.parse(data)
    if fields.magic != MAGIC:
        raise DecodeError(what, offset, f"magic {fields.magic!r}, want {MAGIC!r}")
    place = offset + len(MAGIC)
    if fields.byte_order != BYTE_ORDER:
        raise DecodeError(
            what, place, f"byte order mark {fields.byte_order:#010x}, want {BYTE_ORDER:#010x}"
        )
    if unknown := fields.mandatory_flags & ~MANDATORY_KNOWN:
        raise DecodeError(
            what,
            place + 4,
            f"unknown mandatory flags {unknown:#x}, want only {MANDATORY_KNOWN:#x}",
        )
    if fields.optional_data_len > MAX_OPTIONAL_DATA:
        raise DecodeError(
            what,
            place + 12,
            f"{fields.optional_data_len} bytes of optional data, want at most {MAX_OPTIONAL_DATA}",
        )
    return HeaderFields(fields.mandatory_flags, fields.optional_flags, fields.optional_data_len)


def decode_optional_data(fields: HeaderFields, data: bytes, offset: int = HEADER_SIZE) -> bytes:
    """The configuration in the optional data at `offset`, b"" if there is none.

    Anything after the configuration is skipped, as by xl. Raises DecodeError if the data or the
    configuration is shorter than it says.
    """
    what = "xl optional data"
    check_size(data, fields.optional_data_len, what, offset)
    if not data:
        return b""
    if len(data) < _LENGTH_SIZE:
        raise DecodeError(what, offset, f"{len(data)} bytes, want at least {_LENGTH_SIZE}")
    stream = io.BytesIO(data)
    length = int(Int32ul.parse_stream(stream))
    room = len(data) - _LENGTH_SIZE
    if length > room:
        raise DecodeError(what, offset, f"configuration of {length} bytes, want at most {room}")
    return stream.read(length)


def decode(data: bytes) -> XLHeader:
    """Decode header and optional data in one piece, as `encode_header` makes it. Raises
    DecodeError."""
    fields = decode_header(data[:HEADER_SIZE])
    config = decode_optional_data(fields, data[HEADER_SIZE:])
    return XLHeader(fields.mandatory_flags, fields.optional_flags, config)
