"""The header of a `virsh save` file of libvirt's libxl driver (libxl_conf.h, libxl_driver.c).

16 bytes of magic; version and length of the XML, each a u32; 40 unused bytes; then the XML with a
NUL at its end, and a libxl stream. In version 1 a legacy libxc stream follows instead.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from construct import Bytes, Int32ul, Struct

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.records import check_size

MAGIC: Final = b"libvirt-xml\n \0 \r"
VERSION: Final = 2
"""LIBXL_SAVE_VERSION with LIBXL_HAVE_SRM_V2, of Xen 4.6 and later."""
MAX_XML: Final = 1 << 20
"""libvirt has no limit. A domain's XML is some KiB."""

_HEADER: Final = Struct(
    "magic" / Bytes(len(MAGIC)), "version" / Int32ul, "xml_len" / Int32ul, "unused" / Bytes(40)
)
HEADER_SIZE: Final[int] = _HEADER.sizeof()

_TYPES: Final = {"hvm": "hvm", "xenpvh": "pvh", "xen": "pv", "linux": "pv"}
"""libxl_domain_type by the XML's os/type."""


@dataclass(frozen=True)
class LibvirtHeader:
    """`struct _libxlSavefileHeader` without its constant fields. `xml_len` is in bytes."""

    version: int
    xml_len: int


def encode(xml: bytes, version: int = VERSION) -> bytes:
    """Encode the header followed by `xml`, which ends with a NUL."""
    header = {"magic": MAGIC, "version": version, "xml_len": len(xml), "unused": bytes(40)}
    return bytes(_HEADER.build(header)) + xml


def decode_header(data: bytes, offset: int = 0) -> LibvirtHeader:
    """Decode the HEADER_SIZE bytes `data` at `offset`.

    Raises DecodeError for a wrong magic, an unknown version, and an empty or too long XML.
    """
    what = "libvirt header"
    check_size(data, HEADER_SIZE, what, offset)
    fields = _HEADER.parse(data)
    if fields.magic != MAGIC:
        raise DecodeError(what, offset, f"magic {fields.magic!r}, want {MAGIC!r}")
    place = offset + len(MAGIC)
    if not 1 <= fields.version <= VERSION:
        raise DecodeError(what, place, f"version {fields.version}, want 1 or {VERSION}")
    if not 1 <= fields.xml_len <= MAX_XML:
        raise DecodeError(what, place + 4, f"XML of {fields.xml_len} bytes, want 1 to {MAX_XML}")
    return LibvirtHeader(fields.version, fields.xml_len)


def describe(xml: bytes, offset: int = HEADER_SIZE) -> dict[str, str]:
    """`name` and `type` (libxl's) of the domain in `xml` at `offset`, if it has them. Raises
    DecodeError unless it is a domain's XML."""
    # Imported late: every save would pay for it, and few read such a file.
    import xml.etree.ElementTree as ET

    what = "libvirt XML"
    if re.search(rb"<!(DOCTYPE|ENTITY)", xml):
        # libvirt writes neither, and entities can expand to any amount of memory.
        raise DecodeError(what, offset, "has a document type, want none")
    try:
        root = ET.fromstring(xml.rstrip(b"\0"))
    except (ET.ParseError, ValueError, LookupError) as error:  # the last two for a bad encoding
        raise DecodeError(what, offset, str(error)) from None
    if root.tag != "domain":
        raise DecodeError(what, offset, f"<{root.tag}>, want <domain>")
    kind = (root.findtext("os/type") or "").strip()
    found = {"name": root.findtext("name"), "type": _TYPES.get(kind)}
    return {key: text for key, text in found.items() if text}
