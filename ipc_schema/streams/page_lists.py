"""The page lists of PAGE_DATA, POSTCOPY_PFNS, POSTCOPY_PAGE_DATA and POSTCOPY_FAULT.

u32 count, u32 reserved, then a u64 for each page: bits 63-60 its type, 59-52 reserved, 51-0 its
pfn. Contents, if the record has them, follow the list in the same order. A list is made or read for
every batch on a save's hot path, so entries are handled by whole columns of their octets: the
eighth has the type, the seventh four reserved bits.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Sequence

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.page_types import PageType, has_contents, type_octet
from xen_save_helper.ipc_schema.streams.pfns import Pfns
from xen_save_helper.ipc_schema.streams.records import MAX_LENGTH, check_size

HEADER_SIZE: Final = 8
ENTRY_SIZE: Final = 8
MAX_PFN: Final = (1 << 52) - 1
MAX_PFNS_PER_RECORD: Final = 524288
"""Pages that a writer puts into one POSTCOPY_PFNS record (4 MiB, as in the postcopy series)."""
MAX_COUNT: Final = (MAX_LENGTH - HEADER_SIZE) // ENTRY_SIZE
"""The most pages that any record has room for."""

_HEADER: Final = struct.Struct("<II")
_TYPES: Final = slice(7, None, ENTRY_SIZE)
_NEXT_TO_TYPES: Final = slice(6, None, ENTRY_SIZE)
_LEGAL: Final = bytes(type_octet(page_type) for page_type in PageType)
_PFN_BITS_ONLY: Final = bytes(range(16))
"""What the seventh octet of an entry may be."""
_CONTENTS: Final = bytes(octet in _LEGAL and has_contents(octet << 24) for octet in range(256))
_EMPTY: Final = bytes(1 - has for has in _CONTENTS)
_ALLOCATED: Final = bytes(octet == type_octet(PageType.XALLOC) for octet in range(256))
_RESERVED: Final = 0xFF << 52


def encode_page_list(pfns: Pfns, types: bytes | bytearray) -> bytes:
    """Encode count, reserved field and entries. `pfns` and `types` (see `page_types.type_octet`)
    have the same length. Raises ValueError for an empty list, a pfn above MAX_PFN and an unknown
    type.
    """
    if len(pfns) != len(types) or not 1 <= len(pfns) <= MAX_COUNT:
        raise ValueError(
            f"page list of {len(pfns)} pfns and {len(types)} types, want 1 to {MAX_COUNT} of each"
        )
    return encode_page_list_header(len(pfns)) + encode_entries(pfns, types)


def encode_page_list_header(count: int) -> bytes:
    """Encode count, 1 to MAX_COUNT, and reserved field."""
    return _HEADER.pack(count, 0)


def encode_entries(pfns: Pfns, types: bytes | bytearray) -> bytearray:
    """Encode the entries of `encode_page_list`, of as many lists as they are for. Raises ValueError
    for a pfn above MAX_PFN and an unknown type."""
    entries = bytearray(memoryview(pfns).cast("B"))
    columns = entries[_TYPES], entries[_NEXT_TO_TYPES]
    if not (_only(columns[0], b"\0") and _only(columns[1], _PFN_BITS_ONLY)):
        raise ValueError(f"pfn {max(pfns):#x} in a page list, want at most {MAX_PFN:#x}")
    if not _only(types, _LEGAL):
        raise ValueError("page list with an unknown type, want XEN_DOMCTL_PFINFO_*")
    entries[_TYPES] = types
    return entries


def decode_page_list_header(data: bytes, what: str, offset: int) -> int:
    """The count, 1 to MAX_COUNT, in the HEADER_SIZE bytes `data` at `offset`.

    The caller compares it with the record's length before reading the entries.
    """
    check_size(data, HEADER_SIZE, what, offset)
    count, reserved = _HEADER.unpack(data)
    if not 1 <= count <= MAX_COUNT:
        raise DecodeError(f"{what} count", offset, f"{count} pfns, want 1 to {MAX_COUNT}")
    if reserved:
        raise DecodeError(f"{what} reserved field", offset + 4, f"{reserved:#x}, want 0")
    return int(count)


def decode_entries(data: bytes | bytearray, what: str, offset: int) -> tuple[Pfns, bytes]:
    """The pfns of the entries `data` at `offset`, and their types, an octet each (see
    `page_types.type_octet`).

    Raises DecodeError for reserved bits and unknown types.
    """
    if len(data) % ENTRY_SIZE:
        raise DecodeError(what, offset, f"{len(data)} bytes of pfns, want a multiple of 8")
    types = bytes(data[_TYPES])
    if not (_only(types, _LEGAL) and _only(data[_NEXT_TO_TYPES], _PFN_BITS_ONLY)):
        raise _bad_entry(data, what, offset)
    if not _only(types, b"\0"):
        data = bytearray(data)
        data[_TYPES] = bytes(len(types))
    return array("Q", data), types


def _bad_entry(data: bytes | bytearray, what: str, offset: int) -> DecodeError:
    for index, (entry,) in enumerate(struct.iter_unpack("<Q", data)):
        if reserved := entry & _RESERVED:
            problem = f"has reserved bits {reserved:#x}, want bits 59-52 clear"
        elif entry >> 56 not in _LEGAL:
            problem = f"has type {entry >> 60:#x}, want 0-4 or 9-0xf"
        else:
            continue
        return DecodeError(
            f"{what} pfn[{index}]", offset + index * ENTRY_SIZE, f"{entry:#018x} {problem}"
        )
    raise AssertionError("no entry is bad")


def encode_pfns(pfns: Sequence[int]) -> bytes:
    """Like `encode_page_list` with type NOTAB: faster for a short list."""
    if not 1 <= len(pfns) <= MAX_COUNT:
        raise ValueError(f"page list of {len(pfns)} pfns, want 1 to {MAX_COUNT}")
    if not 0 <= min(pfns) <= max(pfns) <= MAX_PFN:
        raise ValueError(
            f"page list of pfns {min(pfns):#x} to {max(pfns):#x}, want 0 to {MAX_PFN:#x}"
        )
    return struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *pfns)


def decode_pfns(data: bytes | bytearray, what: str, offset: int) -> list[int]:
    """Like `decode_entries`, for a short list of pages that all have contents: the pfns.

    Raises DecodeError also for a page without contents.
    """
    pfns, types = decode_entries(data, what, offset)
    index = contents_mask(types).find(0)
    if index >= 0:
        raise DecodeError(
            f"{what} pfn[{index}]",
            offset + index * ENTRY_SIZE,
            f"pfn {pfns[index]:#x} has no contents",
        )
    return pfns.tolist()


def contents_mask(types: bytes | bytearray) -> bytes:
    """For each (legal) type, 1 if pages of that type have contents in a stream, else 0."""
    if _are_one(types):
        return bytes(types[:1].translate(_CONTENTS)) * len(types)
    return bytes(types.translate(_CONTENTS))


def empty_mask(types: bytes | bytearray) -> bytes:
    """For each (legal) type, 1 if pages of that type have no contents, else 0."""
    return bytes(types.translate(_EMPTY))


def allocated_mask(types: bytes | bytearray) -> bytes:
    """For each type, 1 if it is XALLOC: such pages exist, and their contents do not matter or, in a
    sparse stream, are zeros."""
    return bytes(types.translate(_ALLOCATED))


def _only(octets: bytes | bytearray, allowed: bytes) -> bool:
    if _are_one(octets):
        return octets[:1] in allowed
    return not octets.translate(None, allowed)


def _are_one(octets: bytes | bytearray) -> bool:
    """Whether all are the same, as those of most lists are: this is seen ten times as fast as what
    each of them is."""
    return octets == octets[:1] * len(octets)
