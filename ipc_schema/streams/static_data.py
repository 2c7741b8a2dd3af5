"""Finds the CPU policy at the front of a libxc stream without reading on.

`libxc_stream` is the codec; a save helper that leaves the stream to libxenguest avoids importing
it.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.cpu_features import LEAF_SIZE
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_type
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, decode_record_header, padding

_IMAGE_HEADER: Final = struct.Struct(">QIIHHI")
_MARKER: Final = 2**64 - 1
_ID: Final = 0x58454E46
_DOMAIN_HEADER: Final = struct.Struct("<IHHII")
_X86_PV: Final = 1
_X86_HVM: Final = 2
_RECORDS: Final = _IMAGE_HEADER.size + _DOMAIN_HEADER.size

_BEFORE: Final = frozenset({RecordType.X86_MSR_POLICY, RecordType.X86_PV_INFO})
"""Records that may come before X86_CPUID_POLICY."""


class Policy(NamedTuple):
    """`cpuid` holds the leaves of X86_CPUID_POLICY; `hvm` is true for a PVH guest too."""

    hvm: bool
    cpuid: bytes


class Absent(Enum):
    """Why there is no policy."""

    YET = "its bytes have not arrived yet"
    ALTOGETHER = "the stream has none, or is not a libxc stream"


def policy_of(front: bytes) -> Policy | Absent:
    """The policy in a stream that begins with `front`."""
    if front[:8] != b"\xff" * len(front[:8]):
        return Absent.ALTOGETHER
    if len(front) < _RECORDS:
        return Absent.YET
    marker, magic, version, *_ = _IMAGE_HEADER.unpack_from(front)
    guest, *_ = _DOMAIN_HEADER.unpack_from(front, _IMAGE_HEADER.size)
    # Version 2 has none. Errors in the stream are left to its reader.
    if (marker, magic, version) != (_MARKER, _ID, VERSION) or guest not in (_X86_PV, _X86_HVM):
        return Absent.ALTOGETHER
    try:
        leaves = _leaves_in(front)
    except DecodeError:
        return Absent.ALTOGETHER
    return leaves if isinstance(leaves, Absent) else Policy(guest == _X86_HVM, leaves)


def _leaves_in(front: bytes) -> bytes | Absent:
    place = _RECORDS
    while len(front) >= place + HEADER_SIZE:
        body = place + HEADER_SIZE
        number, length = decode_record_header(front[place:body], "record", place)
        kind = record_type(number, VERSION, place)
        if kind is RecordType.X86_CPUID_POLICY:
            if not length or length % LEAF_SIZE:
                return Absent.ALTOGETHER
            return front[body : body + length] if len(front) >= body + length else Absent.YET
        if kind is not None and kind not in _BEFORE:
            return Absent.ALTOGETHER
        place = body + length + padding(length)
    return Absent.YET
