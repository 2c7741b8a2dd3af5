"""The contents of the libxc stream's record bodies, and a codec for each but those of PV domains
(`pv_bodies`).

An encoder raises ValueError, AttributeError or TypeError for what a body cannot hold; a decoder is
given a body of a length that the record may have (`libxc_records`), the record's name and the
body's offset, and raises DecodeError. The checks are those of xg_sr_restore*.c and of Xen's
verify-stream-v2, whichever is stricter; what depends on the guest (its number of vCPUs, its highest
pfn) is left to the reader of the stream.
"""

from __future__ import annotations

import struct
from array import array

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
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

VCPU_HEADER_SIZE: Final = 8


class PvInfo(NamedTuple):
    """X86_PV_INFO: 8 and 4, or 4 and 3."""

    guest_width: int
    pt_levels: int


class P2mFrames(NamedTuple):
    """X86_PV_P2M_FRAMES: the frames that hold the p2m of pfns `start_pfn` to `end_pfn`."""

    start_pfn: int
    end_pfn: int
    p2m_pfns: Pfns


class VcpuContext(NamedTuple):
    """X86_PV_VCPU_*. An empty context, which Xen 4.6 to 4.8 sent by mistake, is to be ignored."""

    vcpu_id: int
    context: bytes


class TscInfo(NamedTuple):
    """X86_TSC_INFO."""

    mode: int
    khz: int
    nsec: int
    incarnation: int


class PageList(NamedTuple):
    """POSTCOPY_PFNS and POSTCOPY_FAULT: pfns and their types, an octet each (all NOTAB in a
    fault)."""

    pfns: Pfns
    types: bytes


Body = (
    None
    | int
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
CHECKPOINT_DIRTY_PFN_LIST, a list of (index, value) for HVM_PARAMS, a number of pages for
POSTCOPY_TRANSITION."""

_TSC_INFO: Final = struct.Struct("<IIQII")
"""mode, khz, nsec, incarnation, reserved."""
_HVM_PARAMS_HEADER: Final = struct.Struct("<II")
"""count, reserved."""
_HVM_PARAM: Final = struct.Struct("<QQ")
"""index, value."""
_COUNT: Final = struct.Struct("<Q")


def check_zero(value: int, what: str, offset: int) -> None:
    """Raise DecodeError for a reserved field that is not 0."""
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


def encode_tsc_info(info: TscInfo) -> bytes:
    return _packed(_TSC_INFO, info.mode, info.khz, info.nsec, info.incarnation, 0)


def decode_tsc_info(body: bytes, what: str, offset: int) -> TscInfo:
    *fields, reserved = _TSC_INFO.unpack(body)
    check_zero(reserved, what, offset + 20)
    return TscInfo(*fields)


def encode_hvm_params(params: list[tuple[int, int]]) -> bytes:
    header = _packed(_HVM_PARAMS_HEADER, len(params), 0)
    return header + b"".join(_packed(_HVM_PARAM, index, value) for index, value in params)


def decode_hvm_params(body: bytes, what: str, offset: int) -> list[tuple[int, int]]:
    count, reserved = _HVM_PARAMS_HEADER.unpack_from(body)
    check_zero(reserved, what, offset + 4)
    room = (len(body) - _HVM_PARAMS_HEADER.size) // _HVM_PARAM.size
    if count != room:
        raise DecodeError(what, offset, f"count {count}, want {room} to fill the record")
    return list(_HVM_PARAM.iter_unpack(body[_HVM_PARAMS_HEADER.size :]))


def encode_count(count: int) -> bytes:
    return _packed(_COUNT, count)


def decode_count(body: bytes, what: str, offset: int) -> int:
    count: int = _COUNT.unpack(body)[0]
    return count


def _packed(form: struct.Struct, *values: int) -> bytes:
    try:
        return form.pack(*values)
    except struct.error as bad:
        raise ValueError(str(bad)) from None


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
        raise ValueError("a page with a type, want none")
    return encode_page_list(pages)


def decode_faults(body: bytes, what: str, offset: int) -> PageList:
    pages = decode_page_list(body, what, offset)
    if any(pages.types):
        index = next(index for index, octet in enumerate(pages.types) if octet)
        place = offset + page_lists.HEADER_SIZE + index * page_lists.ENTRY_SIZE
        nibble = pages.types[index] >> 4
        raise DecodeError(f"{what} pfn[{index}]", place, f"has type {nibble:#x}, want 0")
    return pages
