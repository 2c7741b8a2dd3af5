"""Finds the CPU policy at the front of a libxc stream without reading on."""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.cpu_features import LEAF_SIZE
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_type
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DOMAIN_HEADER,
    DOMAIN_HEADER_SIZE,
    IDENT,
    IMAGE_HEADER,
    IMAGE_HEADER_SIZE,
    MARKER,
    DomainType,
)
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, decode_record_header, padding

_RECORDS: Final = IMAGE_HEADER_SIZE + DOMAIN_HEADER_SIZE

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
    marker, ident, version, *_ = IMAGE_HEADER.unpack_from(front)
    guest, *_ = DOMAIN_HEADER.unpack_from(front, IMAGE_HEADER_SIZE)
    # Version 2 has none. Errors in the stream are left to its reader.
    if (marker, ident, version) != (MARKER, IDENT, VERSION) or guest not in set(DomainType):
        return Absent.ALTOGETHER
    try:
        leaves = _leaves_in(front)
    except DecodeError:
        return Absent.ALTOGETHER
    return leaves if isinstance(leaves, Absent) else Policy(guest == DomainType.X86_HVM, leaves)


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
