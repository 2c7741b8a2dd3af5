"""The libxc stream (docs/specs/libxc-migration-stream.pandoc), versions 2 and 3.

An image header, a domain header, then records (`records`) up to END. `libxc_record_types` has the
records, `libxc_bodies` their contents, `libxc_records` both in one table; this module has the
headers.

What every save and restore of an HVM or PVH domain has is described with struct, since construct
takes longer to import than a small guest's pages take to move.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSIONS
from xen_save_helper.ipc_schema.streams.records import check_size

MARKER: Final = 0xFFFFFFFFFFFFFFFF
IDENT: Final = int.from_bytes(b"XENF", "big")
OPTION_BIG_ENDIAN: Final = 1 << 0
PAGE_SHIFT: Final = 12

IMAGE_HEADER: Final = struct.Struct(">QIIHHI")
"""marker, ident, version, options, reserved, reserved."""
DOMAIN_HEADER: Final = struct.Struct("<IHHII")
"""type, page_shift, reserved, xen_major, xen_minor."""
IMAGE_HEADER_SIZE: Final = IMAGE_HEADER.size
DOMAIN_HEADER_SIZE: Final = DOMAIN_HEADER.size


class DomainType(IntEnum):
    """DHDR_TYPE_*; a PVH guest counts as HVM."""

    X86_PV = 1
    X86_HVM = 2


class ImageHeader(NamedTuple):
    """`version` is 2 or 3; the stream is little-endian."""

    version: int


class DomainHeader(NamedTuple):
    """`xen_major` is 0 in a stream that was converted from Xen 4.5 or before."""

    type: DomainType = DomainType.X86_HVM
    page_shift: int = PAGE_SHIFT
    xen_major: int = 4
    xen_minor: int = 17


def encode_image_header(header: ImageHeader) -> bytes:
    """Encode IMAGE_HEADER_SIZE bytes. Raises ValueError for a version other than 2 or 3."""
    if header.version not in VERSIONS:
        raise ValueError(f"libxc stream version {header.version}, want 2 or 3")
    return IMAGE_HEADER.pack(MARKER, IDENT, header.version, 0, 0, 0)


def decode_image_header(data: bytes, offset: int = 0) -> ImageHeader:
    """Decode the IMAGE_HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for a wrong marker, ident or version, big-endian streams and reserved bits.
    """
    what = "libxc image header"
    check_size(data, IMAGE_HEADER_SIZE, what, offset)
    marker, ident, version, options, *reserved = IMAGE_HEADER.unpack(data)
    if marker != MARKER:
        raise DecodeError(what, offset, f"marker {marker:#018x}, want {MARKER:#018x}")
    if ident != IDENT:
        raise DecodeError(what, offset + 8, f"ident {ident:#010x}, want {IDENT:#010x}")
    if version not in VERSIONS:
        raise DecodeError(what, offset + 12, f"version {version}, want 2 or 3")
    if options & OPTION_BIG_ENDIAN:
        raise DecodeError(what, offset + 16, "a big-endian stream, want a little-endian one")
    if options:
        raise DecodeError(what, offset + 16, f"reserved options {options:#x}, want 0")
    for place, value in zip((18, 20), reserved, strict=True):
        if value:
            raise DecodeError(f"{what} reserved field", offset + place, f"{value:#x}, want 0")
    return ImageHeader(version)


def encode_domain_header(header: DomainHeader) -> bytes:
    """Encode DOMAIN_HEADER_SIZE bytes. Raises ValueError for values that do not fit a u32, and for
    pages other than 4 KiB."""
    if header.page_shift != PAGE_SHIFT:
        raise ValueError(f"page shift {header.page_shift}, want {PAGE_SHIFT}")
    try:
        return DOMAIN_HEADER.pack(
            header.type, header.page_shift, 0, header.xen_major, header.xen_minor
        )
    except struct.error as bad:
        raise ValueError(f"domain header: {bad}") from None


def decode_domain_header(data: bytes, offset: int = IMAGE_HEADER_SIZE) -> DomainHeader:
    """Decode the DOMAIN_HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for an unknown type, pages other than 4 KiB, and reserved bits.
    """
    what = "libxc domain header"
    check_size(data, DOMAIN_HEADER_SIZE, what, offset)
    number, page_shift, reserved, xen_major, xen_minor = DOMAIN_HEADER.unpack(data)
    try:
        domain_type = DomainType(number)
    except ValueError:
        raise DecodeError(
            what, offset, f"type {number:#x}, want 1 (x86 PV) or 2 (x86 HVM)"
        ) from None
    if page_shift != PAGE_SHIFT:
        raise DecodeError(what, offset + 4, f"page shift {page_shift}, want {PAGE_SHIFT}")
    if reserved:
        raise DecodeError(f"{what} reserved field", offset + 6, f"{reserved:#x}, want 0")
    return DomainHeader(domain_type, page_shift, xen_major, xen_minor)
