"""The contents of the libxc stream's record bodies, and a codec for each.

An encoder raises ValueError, construct's error, AttributeError or TypeError for what a body cannot
hold; a decoder is given a body of a length that the record may have (`libxc_records`), the record's
name and the body's offset, and raises DecodeError. The checks are those of xg_sr_restore*.c and of
Xen's verify-stream-v2, whichever is stricter; what depends on the guest (its number of vCPUs, its
highest pfn) is left to the reader of the stream.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Final, Protocol

from construct import (
    Array,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64ul,
    Struct,
    this,
)

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import page_lists
from xen_save_helper.ipc_schema.streams.pfns import Pfns

CPUID_LEAF_SIZE: Final = 24
"""sizeof(xen_cpuid_leaf_t)."""
MSR_ENTRY_SIZE: Final = 16
"""sizeof(xen_msr_entry_t), and sizeof(xen_domctl_vcpu_msr_t)."""
SHARED_INFO_SIZE: Final = 4096
XSAVE_HEADER_SIZE: Final = 16
"""Bytes in the masks in front of an XSAVE area."""
EXTENDED_LIMIT: Final = 128
"""The most bytes in a xen_domctl_ext_vcpucontext."""
MAX_HVM_PARAMS: Final = 1024
"""HVM_NR_PARAMS is 39 in Xen 4.20."""

_PV_MODES: Final = ((8, 4), (4, 3))
"""Guest width and levels of page tables."""
VCPU_HEADER_SIZE: Final = 8
_PTES_PER_FRAME: Final = (512, 1024)
"""Entries in a p2m frame of a 64-bit and of a 32-bit guest."""


@dataclass(frozen=True)
class PvInfo:
    """X86_PV_INFO: 8 and 4, or 4 and 3."""

    guest_width: int
    pt_levels: int


@dataclass(frozen=True, eq=False)
class P2mFrames:
    """X86_PV_P2M_FRAMES: the frames that hold the p2m of pfns `start_pfn` to `end_pfn`."""

    start_pfn: int
    end_pfn: int
    p2m_pfns: Pfns


@dataclass(frozen=True)
class VcpuContext:
    """X86_PV_VCPU_*. An empty context, which Xen 4.6 to 4.8 sent by mistake, is to be ignored."""

    vcpu_id: int
    context: bytes


@dataclass(frozen=True)
class TscInfo:
    """X86_TSC_INFO."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


class TscFields(Protocol):
    """Anything with the fields of a `TscInfo`."""

    @property
    def mode(self) -> int: ...
    @property
    def khz(self) -> int: ...
    @property
    def nsec(self) -> int: ...
    @property
    def incarnation(self) -> int: ...


@dataclass(frozen=True, eq=False)
class PageList:
    """POSTCOPY_PFNS and POSTCOPY_FAULT: pfns and their types, an octet each (all NOTAB in a
    fault)."""

    pfns: Pfns
    types: bytes


Body = (
    None
    | bytes
    | PvInfo
    | P2mFrames
    | VcpuContext
    | TscInfo
    | PageList
    | Pfns
    | list[tuple[int, int]]
)
"""The content of a body: None for records without one, bytes for opaque ones, an array of pfns for
CHECKPOINT_DIRTY_PFN_LIST, a list of (index, value) for HVM_PARAMS."""

_PV_INFO: Final = Struct(
    "guest_width" / Int8ul, "pt_levels" / Int8ul, "reserved" / Int16ul, "reserved2" / Int32ul
)
_P2M_FRAMES: Final = Struct("start_pfn" / Int32ul, "end_pfn" / Int32ul)
_VCPU: Final = Struct("vcpu_id" / Int32ul, "reserved" / Int32ul, "context" / GreedyBytes)
_TSC_INFO: Final = Struct(
    "mode" / Int32ul,
    "khz" / Int32ul,
    "nsec" / Int64ul,
    "incarnation" / Int32ul,
    "reserved" / Int32ul,
)
_HVM_PARAM: Final = Struct("index" / Int64ul, "value" / Int64ul)
_HVM_PARAMS_HEADER: Final = Struct("count" / Int32ul, "reserved" / Int32ul)
_HVM_PARAMS: Final = Struct(
    "header" / _HVM_PARAMS_HEADER, "params" / Array(this.header.count, _HVM_PARAM)
)


def _zero(value: int, what: str, offset: int) -> None:
    if value:
        raise DecodeError(f"{what} reserved field", offset, f"{value:#x}, want 0")


def encode_nothing(value: None) -> bytes:
    if value is not None:
        raise TypeError
    return b""


def decode_nothing(body: bytes, what: str, offset: int) -> None:
    return None


def encode_bytes(value: bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return value


def decode_bytes(body: bytes, what: str, offset: int) -> bytes:
    return body


def encode_pv_info(info: PvInfo) -> bytes:
    if (info.guest_width, info.pt_levels) not in _PV_MODES:
        raise ValueError(f"X86_PV_INFO: width {info.guest_width} with {info.pt_levels} levels")
    fields = {"guest_width": info.guest_width, "pt_levels": info.pt_levels}
    return bytes(_PV_INFO.build({**fields, "reserved": 0, "reserved2": 0}))


def decode_pv_info(body: bytes, what: str, offset: int) -> PvInfo:
    fields = _PV_INFO.parse(body)
    mode = (fields.guest_width, fields.pt_levels)
    if mode not in _PV_MODES:
        raise DecodeError(
            what, offset, f"guest width {mode[0]} with {mode[1]} levels, want 8 with 4 or 4 with 3"
        )
    _zero(fields.reserved, what, offset + 2)
    _zero(fields.reserved2, what, offset + 4)
    return PvInfo(*mode)


def encode_p2m_frames(frames: P2mFrames) -> bytes:
    if len(frames.p2m_pfns) not in _p2m_counts(frames.start_pfn, frames.end_pfn):
        raise ValueError(
            f"X86_PV_P2M_FRAMES: {len(frames.p2m_pfns)} frames for pfns {frames.start_pfn:#x} "
            f"to {frames.end_pfn:#x}"
        )
    head = _P2M_FRAMES.build({"start_pfn": frames.start_pfn, "end_pfn": frames.end_pfn})
    return bytes(head) + encode_pfns(frames.p2m_pfns)


def decode_p2m_frames(body: bytes, what: str, offset: int) -> P2mFrames:
    fields = _P2M_FRAMES.parse(body)
    start, end = int(fields.start_pfn), int(fields.end_pfn)
    if start > end:
        raise DecodeError(what, offset, f"start pfn {start:#x}, want at most end pfn {end:#x}")
    pfns = decode_pfns(body[_P2M_FRAMES.sizeof() :], what, offset + 8)
    counts = _p2m_counts(start, end)
    if len(pfns) not in counts:
        raise DecodeError(
            what,
            offset + 8,
            f"{len(pfns)} frames for pfns {start:#x} to {end:#x}, want {counts[0]} (64-bit "
            f"guest) or {counts[1]} (32-bit)",
        )
    return P2mFrames(start, end, pfns)


def _p2m_counts(start: int, end: int) -> tuple[int, ...]:
    return tuple(end // ptes - start // ptes + 1 for ptes in _PTES_PER_FRAME)


def encode_vcpu(vcpu: VcpuContext) -> bytes:
    fields = {"vcpu_id": vcpu.vcpu_id, "reserved": 0, "context": vcpu.context}
    return bytes(_VCPU.build(fields))


def decode_vcpu(body: bytes, what: str, offset: int) -> VcpuContext:
    fields = _VCPU.parse(body)
    _zero(fields.reserved, what, offset + 4)
    return VcpuContext(int(fields.vcpu_id), bytes(fields.context))


def encode_tsc_info(info: TscFields) -> bytes:
    fields = {
        "mode": info.mode,
        "khz": info.khz,
        "nsec": info.nsec,
        "incarnation": info.incarnation,
        "reserved": 0,
    }
    return bytes(_TSC_INFO.build(fields))


def decode_xsave(body: bytes, what: str, offset: int) -> VcpuContext:
    vcpu = decode_vcpu(body, what, offset)
    if 0 < len(vcpu.context) < XSAVE_HEADER_SIZE:
        raise DecodeError(
            what,
            offset + VCPU_HEADER_SIZE,
            f"context of {len(vcpu.context)} bytes, want at least {XSAVE_HEADER_SIZE}",
        )
    return vcpu


def decode_tsc_info(body: bytes, what: str, offset: int) -> TscInfo:
    fields = _TSC_INFO.parse(body)
    _zero(fields.reserved, what, offset + 20)
    return TscInfo(fields.mode, fields.khz, fields.nsec, fields.incarnation)


def encode_hvm_params(params: list[tuple[int, int]]) -> bytes:
    fields = [{"index": index, "value": value} for index, value in params]
    header = {"count": len(params), "reserved": 0}
    return bytes(_HVM_PARAMS.build({"header": header, "params": fields}))


def decode_hvm_params(body: bytes, what: str, offset: int) -> list[tuple[int, int]]:
    header = _HVM_PARAMS_HEADER.parse(body)
    _zero(header.reserved, what, offset + 4)
    room = (len(body) - _HVM_PARAMS_HEADER.sizeof()) // _HVM_PARAM.sizeof()
    if header.count != room:
        raise DecodeError(what, offset, f"count {header.count}, want {room} to fill the record")
    return [(int(param.index), int(param.value)) for param in _HVM_PARAMS.parse(body).params]


def encode_pfns(pfns: Pfns) -> bytes:
    return pfns.tobytes()


def decode_pfns(body: bytes, what: str, offset: int) -> Pfns:
    return array("Q", body)


def encode_page_list(pages: PageList) -> bytes:
    return page_lists.encode_page_list(pages.pfns, pages.types)


def decode_page_list(body: bytes, what: str, offset: int) -> PageList:
    header = body[: page_lists.HEADER_SIZE]
    count = page_lists.decode_page_list_header(header, what, offset)
    entries = body[page_lists.HEADER_SIZE :]
    if len(entries) != count * page_lists.ENTRY_SIZE:
        room = len(entries) // page_lists.ENTRY_SIZE
        raise DecodeError(what, offset, f"count {count}, want {room} to fill the record")
    pfns, types = page_lists.decode_entries(entries, what, offset + page_lists.HEADER_SIZE)
    return PageList(pfns, types)


def encode_faults(pages: PageList) -> bytes:
    if any(pages.types):
        raise ValueError("POSTCOPY_FAULT: a page with a type, want none")
    return encode_page_list(pages)


def decode_faults(body: bytes, what: str, offset: int) -> PageList:
    pages = decode_page_list(body, what, offset)
    if any(pages.types):
        index = next(index for index, octet in enumerate(pages.types) if octet)
        place = offset + page_lists.HEADER_SIZE + index * page_lists.ENTRY_SIZE
        nibble = pages.types[index] >> 4
        raise DecodeError(f"{what} pfn[{index}]", place, f"has type {nibble:#x}, want 0")
    return pages
