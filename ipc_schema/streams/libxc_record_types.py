"""The records of the libxc stream, and their numbers in its two versions.

The postcopy series numbered its records 0x10 to 0x16 in version 2. Mainline has since given the
first of these numbers to other records, in version 3; there postcopy's are 0x40000010 to
0x40000016, with bit 31 clear so that a reader without postcopy refuses such a stream.

SPARSE is this project's own. Xen does not scrub what a living domain gives back, so a reader that
takes "allocate only" at its word can leave another domain's old data where the guest had zeros. A
stream in which XALLOC means zeros therefore begins with a mandatory record that such a reader does
not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.streams.records import OPTIONAL

VERSION: Final = 3
"""The version that is written."""
VERSIONS: Final = (2, VERSION)
"""The versions that are read."""


class RecordType(IntEnum):
    """REC_TYPE_* of xg_sr_stream_format.h, with the numbers of version 3."""

    END = 0x0
    PAGE_DATA = 0x1
    X86_PV_INFO = 0x2
    X86_PV_P2M_FRAMES = 0x3
    X86_PV_VCPU_BASIC = 0x4
    X86_PV_VCPU_EXTENDED = 0x5
    X86_PV_VCPU_XSAVE = 0x6
    SHARED_INFO = 0x7
    X86_TSC_INFO = 0x8
    HVM_CONTEXT = 0x9
    HVM_PARAMS = 0xA
    TOOLSTACK = 0xB
    X86_PV_VCPU_MSRS = 0xC
    VERIFY = 0xD
    CHECKPOINT = 0xE
    CHECKPOINT_DIRTY_PFN_LIST = 0xF
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12
    POSTCOPY_BEGIN = 0x40000010
    POSTCOPY_PFNS_BEGIN = 0x40000011
    POSTCOPY_PFNS = 0x40000012
    POSTCOPY_TRANSITION = 0x40000013
    POSTCOPY_PAGE_DATA = 0x40000014
    POSTCOPY_FAULT = 0x40000015
    POSTCOPY_COMPLETE = 0x40000016
    SPARSE = 0x40000020
    """Ours: XALLOC pages hold zeros. It stands among the static data."""
    POSTCOPY_OFFER = 0x40000021
    """Ours: a page server, for a postcopy that outlives the stream. It, too, stands there."""
    POSTCOPY_READY = 0x40000022
    """Ours, on the back channel: paging is on, or the pages of a list are evicted. The guest is not
    suspended before."""


_POSTCOPY_BIT: Final = 0x40000000
_ONLY_VERSION_3: Final = frozenset(
    {
        RecordType.STATIC_DATA_END,
        RecordType.X86_CPUID_POLICY,
        RecordType.X86_MSR_POLICY,
        RecordType.SPARSE,
        RecordType.POSTCOPY_OFFER,
        RecordType.POSTCOPY_READY,
    }
)
_NUMBERS: Final[Mapping[int, Mapping[RecordType, int]]] = {
    2: {kind: kind & ~_POSTCOPY_BIT for kind in RecordType if kind not in _ONLY_VERSION_3},
    3: {kind: int(kind) for kind in RecordType},
}
_TYPES: Final[Mapping[int, Mapping[int, RecordType]]] = {
    version: {number: kind for kind, number in numbers.items()}
    for version, numbers in _NUMBERS.items()
}


def record_number(kind: RecordType, version: int) -> int:
    """The number of `kind` in a stream of `version` (2 or 3).

    Raises ValueError for an unknown version, or one without that record.
    """
    number = _NUMBERS.get(version, {}).get(kind)
    if number is None:
        raise ValueError(f"libxc stream version {version} has no {kind.name}")
    return number


def record_types(version: int) -> Mapping[int, RecordType]:
    """The records of a stream of `version` (2 or 3), by their numbers."""
    return _TYPES[version]


def record_type(number: int, version: int, offset: int) -> RecordType | None:
    """The type of the record at `offset`; None for an unknown optional one, which is to be skipped.

    Raises DecodeError for an unknown mandatory one, ValueError for an unknown version.
    """
    if version not in VERSIONS:
        raise ValueError(f"libxc stream version {version}, want 2 or 3")
    kind = _TYPES[version].get(number)
    if kind is None and not number & OPTIONAL:
        raise DecodeError(
            "libxc record",
            offset,
            f"unknown mandatory type {number:#x}, want one of version {version} or bit 31 set",
        )
    return kind
