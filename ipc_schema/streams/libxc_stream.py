"""The libxc stream (docs/specs/libxc-migration-stream.pandoc), versions 2 and 3.

An image header, a domain header, then records (`records`) up to END. `libxc_record_types` has the
records, `libxc_bodies` their contents, `libxc_records` both in one table; this module has the
headers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from construct import ConstructError, Int16ub, Int16ul, Int32ub, Int32ul, Int64ub, Struct

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSIONS
from xen_save_helper.ipc_schema.streams.records import check_size

MARKER: Final = 0xFFFFFFFFFFFFFFFF
IDENT: Final = int.from_bytes(b"XENF", "big")
OPTION_BIG_ENDIAN: Final = 1 << 0
PAGE_SHIFT: Final = 12

_IMAGE_HEADER: Final = Struct(
    "marker" / Int64ub,
    "ident" / Int32ub,
    "version" / Int32ub,
    "options" / Int16ub,
    "reserved" / Int16ub,
    "reserved2" / Int32ub,
)
_DOMAIN_HEADER: Final = Struct(
    "type" / Int32ul,
    "page_shift" / Int16ul,
    "reserved" / Int16ul,
    "xen_major" / Int32ul,
    "xen_minor" / Int32ul,
)
IMAGE_HEADER_SIZE: Final[int] = _IMAGE_HEADER.sizeof()
DOMAIN_HEADER_SIZE: Final[int] = _DOMAIN_HEADER.sizeof()


class DomainType(IntEnum):
    """DHDR_TYPE_*; a PVH guest counts as HVM."""

    X86_PV = 1
    X86_HVM = 2


@dataclass(frozen=True)
class ImageHeader:
    """`version` is 2 or 3; the stream is little-endian."""

    version: int


@dataclass(frozen=True)
class DomainHeader:
    """`xen_major` is 0 in a stream that was converted from Xen 4.5 or before."""

    type: DomainType = DomainType.X86_HVM
    page_shift: int = PAGE_SHIFT
    xen_major: int = 4
    xen_minor: int = 17


def encode_image_header(header: ImageHeader) -> bytes:
    """Encode IMAGE_HEADER_SIZE bytes. Raises ValueError for a version other than 2 or 3."""
    if header.version not in VERSIONS:
        raise ValueError(f"libxc stream version {header.version}, want 2 or 3")
    fields = {"marker": MARKER, "ident": IDENT, "version": header.version}
    return bytes(_IMAGE_HEADER.build({**fields, "options": 0, "reserved": 0, "reserved2": 0}))


def decode_image_header(data: bytes, offset: int = 0) -> ImageHeader:
    """Decode the IMAGE_HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for a wrong marker, ident or version, big-endian streams and reserved bits.
    """
    what = "libxc image header"
    check_size(data, IMAGE_HEADER_SIZE, what, offset)
    fields = _IMAGE_HEADER.parse(data)
    if fields.marker != MARKER:
        raise DecodeError(what, offset, f"marker {fields.marker:#018x}, want {MARKER:#018x}")
    if fields.ident != IDENT:
        raise DecodeError(what, offset + 8, f"ident {fields.ident:#010x}, want {IDENT:#010x}")
    if fields.version not in VERSIONS:
        raise DecodeError(what, offset + 12, f"version {fields.version}, want 2 or 3")
    if fields.options & OPTION_BIG_ENDIAN:
        raise DecodeError(what, offset + 16, "a big-endian stream, want a little-endian one")
    if fields.options:
        raise DecodeError(what, offset + 16, f"reserved options {fields.options:#x}, want 0")
    for place, value in ((18, fields.reserved), (20, fields.reserved2)):
        if value:
            raise DecodeError(f"{what} reserved field", offset + place, f"{value:#x}, want 0")
    return ImageHeader(int(fields.version))


def encode_domain_header(header: DomainHeader) -> bytes:
    """Encode DOMAIN_HEADER_SIZE bytes. Raises ValueError for values that do not fit a u32, and for
    pages other than 4 KiB."""
    if header.page_shift != PAGE_SHIFT:
        raise ValueError(f"page shift {header.page_shift}, want {PAGE_SHIFT}")
    fields = {"type": header.type, "page_shift": header.page_shift, "reserved": 0}
    versions = {"xen_major": header.xen_major, "xen_minor": header.xen_minor}
    try:
        return bytes(_DOMAIN_HEADER.build({**fields, **versions}))
    except ConstructError as bad:
        raise ValueError(f"domain header: {str(bad).splitlines()[-1]}") from None


def decode_domain_header(data: bytes, offset: int = IMAGE_HEADER_SIZE) -> DomainHeader:
    """Decode the DOMAIN_HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for an unknown type, pages other than 4 KiB, and reserved bits.
    """
    what = "libxc domain header"
    check_size(data, DOMAIN_HEADER_SIZE, what, offset)
    fields = _DOMAIN_HEADER.parse(data)
    try:
        domain_type = DomainType(fields.type)
    except ValueError:
        raise DecodeError(
            what, offset, f"type {fields.type:#x}, want 1 (x86 PV) or 2 (x86 HVM)"
        ) from None
    if fields.page_shift != PAGE_SHIFT:
        raise DecodeError(what, offset + 4, f"page shift {fields.page_shift}, want {PAGE_SHIFT}")
    if fields.reserved:
        raise DecodeError(f"{what} reserved field", offset + 6, f"{fields.reserved:#x}, want 0")
    return DomainHeader(
        domain_type, int(fields.page_shift), int(fields.xen_major), int(fields.xen_minor)
    )
