"""The page lists of PAGE_DATA, POSTCOPY_PFNS, POSTCOPY_PAGE_DATA and POSTCOPY_FAULT.

u32 count, u32 reserved, then a u64 for each page: bits 63-60 its type, 59-52 reserved, 51-0 its
pfn. Contents, if the record has them, follow the list in the same order. This uses numpy, because a
list is made or read for every batch on a save's hot path.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.page_types import (
    FIRST_WITHOUT_CONTENTS,
    TYPE_SHIFT,
    PageType,
)
from xen_save_helper.ipc_schema.streams.records import MAX_LENGTH, check_size

HEADER_SIZE: Final = 8
ENTRY_SIZE: Final = 8
MAX_PFN: Final = (1 << 52) - 1
MAX_PFNS_PER_RECORD: Final = 524288
"""Pages that a writer puts into one POSTCOPY_PFNS record (4 MiB, as in the postcopy series)."""
MAX_COUNT: Final = (MAX_LENGTH - HEADER_SIZE) // ENTRY_SIZE
"""The most pages that any record has room for."""

_HEADER: Final = struct.Struct("<II")
_ENTRIES: Final = np.dtype("<u8")
_PFN_MASK: Final = np.uint64(MAX_PFN)
_RESERVED: Final = np.uint64(0xFF << 52)
_PFN_BITS: Final = np.uint64(52)
_NIBBLE_SHIFT: Final = np.uint64(60)
_TYPE_SHIFT: Final = np.uint32(TYPE_SHIFT)
_TYPE_TO_ENTRY: Final = np.uint64(32)
_LOW_TYPE_BITS: Final = np.uint32((1 << TYPE_SHIFT) - 1)
_FIRST_WITHOUT_CONTENTS: Final = np.uint32(FIRST_WITHOUT_CONTENTS)
_LEGAL: Final = np.uint32(sum(1 << (page_type >> TYPE_SHIFT) for page_type in PageType))
"""A bit for each of the sixteen types."""
_LOWEST_BIT: Final = np.uint32(1)


def encode_page_list(pfns: NDArray[np.uint64], types: NDArray[np.uint32]) -> bytes:
    """Encode count, reserved field and entries. `pfns` and `types` (PageType values) have the same
    length. Raises ValueError for an empty list, a pfn above MAX_PFN and an unknown type.
    """
    if len(pfns) != len(types) or not 1 <= len(pfns) <= MAX_COUNT:
        raise ValueError(
            f"page list of {len(pfns)} pfns and {len(types)} types, want 1 to {MAX_COUNT} of each"
        )
    return encode_page_list_header(len(pfns)) + encode_entries(pfns, types).tobytes()


def encode_page_list_header(count: int) -> bytes:
    """Encode count, 1 to MAX_COUNT, and reserved field."""
    return _HEADER.pack(count, 0)


def encode_entries(pfns: NDArray[np.uint64], types: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """Encode the entries of `encode_page_list`, an element each, of as many lists as they are for.
    Raises ValueError for a pfn above MAX_PFN and an unknown type."""
    if (pfns >> _PFN_BITS).any():
        raise ValueError(f"pfn {int(pfns.max()):#x} in a page list, want at most {MAX_PFN:#x}")
    if (types & _LOW_TYPE_BITS).any() or not _legal(types >> _TYPE_SHIFT).all():
        raise ValueError("page list with an unknown type, want XEN_DOMCTL_PFINFO_*")
    entries = types.astype(_ENTRIES)
    entries <<= _TYPE_TO_ENTRY
    entries |= pfns
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


def decode_entries(
    data: bytes | bytearray | memoryview, what: str, offset: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """The pfns and types of the entries `data` at `offset`.

    Raises DecodeError for reserved bits and unknown types.
    """
    if len(data) % ENTRY_SIZE:
        raise DecodeError(what, offset, f"{len(data)} bytes of pfns, want a multiple of 8")
    entries = np.frombuffer(data, _ENTRIES).astype(np.uint64, copy=False)
    nibbles = (entries >> _NIBBLE_SHIFT).astype(np.uint32)
    bad = (entries & _RESERVED) != 0
    bad |= ~_legal(nibbles)
    if bad.any():
        index = int(bad.argmax())
        entry = int(entries[index])
        reserved = entry & int(_RESERVED)
        problem = (
            f"{entry:#018x} has reserved bits {reserved:#x}, want bits 59-52 clear"
            if reserved
            else f"{entry:#018x} has type {entry >> 60:#x}, want 0-4 or 9-0xf"
        )
        raise DecodeError(f"{what} pfn[{index}]", offset + index * ENTRY_SIZE, problem)
    return entries & _PFN_MASK, nibbles << _TYPE_SHIFT


def encode_pfns(pfns: Sequence[int]) -> bytes:
    """Like `encode_page_list` with type NOTAB, but without numpy: faster for a short list."""
    if not 1 <= len(pfns) <= MAX_COUNT:
        raise ValueError(f"page list of {len(pfns)} pfns, want 1 to {MAX_COUNT}")
    if not 0 <= min(pfns) <= max(pfns) <= MAX_PFN:
        raise ValueError(
            f"page list of pfns {min(pfns):#x} to {max(pfns):#x}, want 0 to {MAX_PFN:#x}"
        )
    return struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *pfns)


def decode_pfns(data: bytes | bytearray | memoryview, what: str, offset: int) -> list[int]:
    """Like `decode_entries`, for a short list of pages that all have contents: the pfns.

    Raises DecodeError also for a page without contents.
    """
    if len(data) % ENTRY_SIZE == 0:
        entries = struct.unpack(f"<{len(data) // ENTRY_SIZE}Q", data)
        if max(entries, default=0) <= MAX_PFN:
            return list(entries)
    pfns, types = decode_entries(data, what, offset)
    lacking = np.flatnonzero(~contents_mask(types))
    if len(lacking):
        index = int(lacking[0])
        raise DecodeError(
            f"{what} pfn[{index}]",
            offset + index * ENTRY_SIZE,
            f"pfn {int(pfns[index]):#x} has no contents",
        )
    return [int(pfn) for pfn in pfns]


def contents_mask(types: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """For each (legal) type, whether pages of that type have contents in a stream."""
    mask: NDArray[np.bool_] = types < _FIRST_WITHOUT_CONTENTS
    return mask


def _legal(nibbles: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Whether each of these, 0 to 15, is a type."""
    return (_LEGAL >> nibbles & _LOWEST_BIT).astype(np.bool_)
