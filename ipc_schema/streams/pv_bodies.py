"""The bodies of the libxc stream's records that only PV domains have: a codec for each, like those
of `libxc_bodies`."""

from __future__ import annotations

from typing import Any, Final

from construct import (
    Construct,
    ConstructError,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Struct,
)

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_bodies import (
    VCPU_HEADER_SIZE,
    XSAVE_HEADER_SIZE,
    P2mFrames,
    PvInfo,
    VcpuContext,
    check_zero,
    decode_pfns,
    encode_pfns,
)

_PV_MODES: Final = ((8, 4), (4, 3))
"""Guest width and levels of page tables."""
_PTES_PER_FRAME: Final = (512, 1024)
"""Entries in a p2m frame of a 64-bit and of a 32-bit guest."""

_PV_INFO: Final = Struct(
    "guest_width" / Int8ul, "pt_levels" / Int8ul, "reserved" / Int16ul, "reserved2" / Int32ul
)
_P2M_FRAMES: Final = Struct("start_pfn" / Int32ul, "end_pfn" / Int32ul)
_VCPU: Final = Struct("vcpu_id" / Int32ul, "reserved" / Int32ul, "context" / GreedyBytes)


def encode_pv_info(info: PvInfo) -> bytes:
    if (info.guest_width, info.pt_levels) not in _PV_MODES:
        raise ValueError(f"width {info.guest_width} with {info.pt_levels} levels")
    fields = {"guest_width": info.guest_width, "pt_levels": info.pt_levels}
    return _built(_PV_INFO, {**fields, "reserved": 0, "reserved2": 0})


def decode_pv_info(body: bytes, what: str, offset: int) -> PvInfo:
    fields = _PV_INFO.parse(body)
    mode = (fields.guest_width, fields.pt_levels)
    if mode not in _PV_MODES:
        raise DecodeError(
            what, offset, f"guest width {mode[0]} with {mode[1]} levels, want 8 with 4 or 4 with 3"
        )
    check_zero(fields.reserved, what, offset + 2)
    check_zero(fields.reserved2, what, offset + 4)
    return PvInfo(*mode)


def encode_p2m_frames(frames: P2mFrames) -> bytes:
    if len(frames.p2m_pfns) not in _p2m_counts(frames.start_pfn, frames.end_pfn):
        raise ValueError(
            f"{len(frames.p2m_pfns)} frames for pfns {frames.start_pfn:#x} to {frames.end_pfn:#x}"
        )
    head = {"start_pfn": frames.start_pfn, "end_pfn": frames.end_pfn}
    return _built(_P2M_FRAMES, head) + encode_pfns(frames.p2m_pfns)


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
    return _built(_VCPU, fields)


def decode_vcpu(body: bytes, what: str, offset: int) -> VcpuContext:
    fields = _VCPU.parse(body)
    check_zero(fields.reserved, what, offset + 4)
    return VcpuContext(int(fields.vcpu_id), bytes(fields.context))


encode_xsave = encode_vcpu


def decode_xsave(body: bytes, what: str, offset: int) -> VcpuContext:
    vcpu = decode_vcpu(body, what, offset)
    if 0 < len(vcpu.context) < XSAVE_HEADER_SIZE:
        raise DecodeError(
            what,
            offset + VCPU_HEADER_SIZE,
            f"context of {len(vcpu.context)} bytes, want at least {XSAVE_HEADER_SIZE}",
        )
    return vcpu


def _built(form: Construct[Any, Any], fields: dict[str, Any]) -> bytes:
    try:
        return bytes(form.build(fields))
    except ConstructError as bad:
        raise ValueError(str(bad).splitlines()[-1]) from None
