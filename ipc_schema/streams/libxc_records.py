"""The records of the libxc stream as a table: the lengths a body may have, and its codec.

PAGE_DATA and POSTCOPY_PAGE_DATA are not in it: page contents are handled elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import Any, Final
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.streams import postcopy_offer
from xen_save_helper.ipc_schema.streams.libxc_bodies import (
    CPUID_LEAF_SIZE,
    EXTENDED_LIMIT,
    MAX_HVM_PARAMS,
    MSR_ENTRY_SIZE,
    SHARED_INFO_SIZE,
    VCPU_HEADER_SIZE,
    Body,
    decode_bytes,
    decode_count,
    decode_faults,
    decode_hvm_params,
    decode_nothing,
    decode_page_list,
    decode_pfns,
    decode_tsc_info,
    encode_bytes,
    encode_count,
    encode_faults,
    encode_hvm_params,
    encode_nothing,
    encode_page_list,
    encode_pfns,
    encode_tsc_info,
)
from xen_save_helper.ipc_schema.streams.libxc_record_types import (
    VERSION,
    RecordType,
    record_number,
)
from xen_save_helper.ipc_schema.streams.records import MAX_LENGTH


class BodyFormat(NamedTuple):
    """How to encode and decode the body of a record.

    `lengths` are those it may have, in bytes. `decode(body, what, offset)` gets no others.
    """

    lengths: range
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes, str, int], Body]


def _pv(lengths: range, name: str) -> BodyFormat:
    """With the codec of that name in `pv_bodies`, which is imported when such a body comes."""

    def of(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            from xen_save_helper.ipc_schema.streams import pv_bodies

            return getattr(pv_bodies, name)(*arguments)

        return call

    return BodyFormat(lengths, of(f"encode_{name}"), of(f"decode_{name}"))


_NOTHING: Final = BodyFormat(range(1), encode_nothing, decode_nothing)


def _opaque(lengths: range) -> BodyFormat:
    return BodyFormat(lengths, encode_bytes, decode_bytes)


def _vcpu(contexts: range) -> BodyFormat:
    size = VCPU_HEADER_SIZE
    lengths = range(contexts.start + size, contexts.stop + size, contexts.step)
    return _pv(lengths, "vcpu")


_TO_LIMIT: Final = MAX_LENGTH + 1
_PAGE_LIST_LENGTHS: Final = range(16, _TO_LIMIT, 8)

BODIES: Final[Mapping[RecordType, BodyFormat]] = {
    RecordType.END: _NOTHING,
    RecordType.X86_PV_INFO: _pv(range(8, 9), "pv_info"),
    RecordType.X86_PV_P2M_FRAMES: _pv(range(16, _TO_LIMIT, 8), "p2m_frames"),
    RecordType.X86_PV_VCPU_BASIC: _vcpu(range(_TO_LIMIT - VCPU_HEADER_SIZE)),
    RecordType.X86_PV_VCPU_EXTENDED: _vcpu(range(EXTENDED_LIMIT + 1)),
    RecordType.X86_PV_VCPU_XSAVE: _pv(range(VCPU_HEADER_SIZE, _TO_LIMIT), "xsave"),
    RecordType.X86_PV_VCPU_MSRS: _vcpu(range(0, _TO_LIMIT - VCPU_HEADER_SIZE, MSR_ENTRY_SIZE)),
    RecordType.SHARED_INFO: _opaque(range(SHARED_INFO_SIZE, SHARED_INFO_SIZE + 1)),
    RecordType.X86_TSC_INFO: BodyFormat(range(24, 25), encode_tsc_info, decode_tsc_info),
    RecordType.HVM_CONTEXT: _opaque(range(1, _TO_LIMIT)),
    RecordType.HVM_PARAMS: BodyFormat(
        range(8, 8 + 16 * MAX_HVM_PARAMS + 1, 16), encode_hvm_params, decode_hvm_params
    ),
    RecordType.TOOLSTACK: _opaque(range(_TO_LIMIT)),
    RecordType.VERIFY: _NOTHING,
    RecordType.CHECKPOINT: _NOTHING,
    RecordType.CHECKPOINT_DIRTY_PFN_LIST: BodyFormat(
        range(0, _TO_LIMIT, 8), encode_pfns, decode_pfns
    ),
    RecordType.STATIC_DATA_END: _NOTHING,
    RecordType.X86_CPUID_POLICY: _opaque(range(CPUID_LEAF_SIZE, _TO_LIMIT, CPUID_LEAF_SIZE)),
    RecordType.X86_MSR_POLICY: _opaque(range(MSR_ENTRY_SIZE, _TO_LIMIT, MSR_ENTRY_SIZE)),
    RecordType.POSTCOPY_BEGIN: _NOTHING,
    RecordType.POSTCOPY_PFNS_BEGIN: _NOTHING,
    RecordType.POSTCOPY_PFNS: BodyFormat(_PAGE_LIST_LENGTHS, encode_page_list, decode_page_list),
    RecordType.POSTCOPY_TRANSITION: BodyFormat(range(8, 9), encode_count, decode_count),
    RecordType.POSTCOPY_FAULT: BodyFormat(_PAGE_LIST_LENGTHS, encode_faults, decode_faults),
    RecordType.POSTCOPY_COMPLETE: _NOTHING,
    RecordType.POSTCOPY_READY: _NOTHING,
    RecordType.SPARSE: _NOTHING,
    RecordType.POSTCOPY_OFFER: _opaque(range(1, postcopy_offer.MOST + 1)),
}
"""The body of each record in version 3, and in version 2 but for those of `_OF_SERIES`."""
_OF_SERIES: Final[Mapping[RecordType, BodyFormat]] = {RecordType.POSTCOPY_TRANSITION: _NOTHING}
"""What the postcopy series writes in version 2: its transition does not say how many pages were
listed."""
WITH_CONTENTS: Final = frozenset(RecordType) - frozenset(BODIES)
"""PAGE_DATA and POSTCOPY_PAGE_DATA: a page list, then PAGE_SIZE bytes for each page with
contents."""


def encode_body(kind: RecordType, value: Body = None, version: int = VERSION) -> bytes:
    """Encode the body of a record, without padding, for a stream of `version`. Raises ValueError
    for what it cannot hold, and for records with page contents."""
    form = _format(kind, version)
    try:
        body = form.encode(value)
    except ValueError as bad:
        raise ValueError(f"{kind.name}: {bad}") from None
    except (AttributeError, TypeError):
        raise ValueError(f"{kind.name}: {type(value).__name__} is not what it holds") from None
    if len(body) not in form.lengths:
        raise ValueError(f"{kind.name}: {len(body)} bytes, want {_want(form.lengths)}")
    return body


def check_length(kind: RecordType, length: int, offset: int, version: int = VERSION) -> None:
    """Raise DecodeError unless the body of the `kind` record at `offset` may have `length` bytes,
    in a stream of `version`. Call it before reading the body."""
    lengths = _PAGE_LIST_LENGTHS if kind in WITH_CONTENTS else _format(kind, version).lengths
    if length not in lengths:
        raise DecodeError(
            f"libxc {kind.name}", offset + 4, f"body of {length} bytes, want {_want(lengths)}"
        )


def decode_body(kind: RecordType, body: bytes, offset: int, version: int = VERSION) -> Body:
    """Decode the body (without padding) at `offset`, in a stream of `version`.

    Raises DecodeError; ValueError for records with page contents, and for a version that does not
    have this record.
    """
    form = _format(kind, version)
    record_number(kind, version)
    what = f"libxc {kind.name}"
    if len(body) not in form.lengths:
        raise DecodeError(what, offset, f"body of {len(body)} bytes, want {_want(form.lengths)}")
    return form.decode(body, what, offset)


def _format(kind: RecordType, version: int) -> BodyFormat:
    if kind in WITH_CONTENTS:
        raise ValueError(f"{kind.name} has page contents, which this codec does not handle")
    return BODIES[kind] if version > 2 else _OF_SERIES.get(kind, BODIES[kind])


def _want(lengths: range) -> str:
    if len(lengths) == 1:
        return str(lengths[0])
    step = f" in steps of {lengths.step}" if lengths.step > 1 else ""
    return f"{lengths[0]} to {lengths[-1]}{step}"
