"""The libxc stream: headers, numbers, bodies."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_bodies import (
    Body,
    P2mFrames,
    PageList,
    PvInfo,
    TscInfo,
    VcpuContext,
)
from xen_save_helper.ipc_schema.streams.libxc_record_types import (
    RecordType,
    record_number,
    record_type,
)
from xen_save_helper.ipc_schema.streams.libxc_records import (
    BODIES,
    WITH_CONTENTS,
    check_length,
    decode_body,
    encode_body,
)
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DomainHeader,
    DomainType,
    ImageHeader,
    decode_domain_header,
    decode_image_header,
    encode_domain_header,
    encode_image_header,
)
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import pfns_of

U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
PFN = st.integers(0, (1 << 52) - 1)
VERSION_3_ONLY = {
    RecordType.STATIC_DATA_END,
    RecordType.X86_CPUID_POLICY,
    RecordType.X86_MSR_POLICY,
    RecordType.SPARSE,
    RecordType.POSTCOPY_OFFER,
    RecordType.POSTCOPY_READY,
}


@st.composite
def p2m_frames(draw: st.DrawFn) -> P2mFrames:
    start = draw(st.integers(0, 1 << 20))
    end = start + draw(st.integers(0, 1 << 14))
    ptes = draw(st.sampled_from([512, 1024]))
    count = end // ptes - start // ptes + 1
    return P2mFrames(start, end, pfns_of(draw(st.lists(U64, min_size=count, max_size=count))))


@st.composite
def page_list(draw: st.DrawFn, types: st.SearchStrategy[PageType]) -> PageList:
    entries = draw(st.lists(st.tuples(PFN, types), min_size=1))
    return PageList(
        pfns_of(pfn for pfn, _ in entries), bytes(type_octet(kind) for _, kind in entries)
    )


def multiples(size: int) -> st.SearchStrategy[bytes]:
    return st.integers(1, 5).flatmap(lambda n: st.binary(min_size=n * size, max_size=n * size))


def vcpu(contexts: st.SearchStrategy[bytes]) -> st.SearchStrategy[VcpuContext]:
    return st.builds(VcpuContext, U32, st.just(b"") | contexts)


VALUES: dict[RecordType, st.SearchStrategy[Body]] = {
    kind: st.none() for kind, form in BODIES.items() if form.lengths == range(1)
} | {
    RecordType.X86_PV_INFO: st.sampled_from([PvInfo(8, 4), PvInfo(4, 3)]),
    RecordType.X86_PV_P2M_FRAMES: p2m_frames(),
    RecordType.X86_PV_VCPU_BASIC: vcpu(st.binary()),
    RecordType.X86_PV_VCPU_EXTENDED: vcpu(st.binary(max_size=128)),
    RecordType.X86_PV_VCPU_XSAVE: vcpu(st.binary(min_size=16)),
    RecordType.X86_PV_VCPU_MSRS: vcpu(multiples(16)),
    RecordType.SHARED_INFO: st.just(bytes(4096)),
    RecordType.X86_TSC_INFO: st.builds(TscInfo, U32, U32, U64, U32),
    RecordType.HVM_CONTEXT: st.binary(min_size=1),
    RecordType.HVM_PARAMS: st.lists(st.tuples(U64, U64)),
    RecordType.TOOLSTACK: st.binary(),
    RecordType.CHECKPOINT_DIRTY_PFN_LIST: st.lists(U64).map(pfns_of),
    RecordType.X86_CPUID_POLICY: multiples(24),
    RecordType.X86_MSR_POLICY: multiples(16),
    RecordType.POSTCOPY_PFNS: page_list(st.sampled_from(PageType)),
    RecordType.POSTCOPY_TRANSITION: U64,
    RecordType.POSTCOPY_FAULT: page_list(st.just(PageType.NOTAB)),
    RecordType.POSTCOPY_OFFER: st.binary(min_size=1, max_size=4096),
}


def kinds_of(version: int) -> list[RecordType]:
    return [kind for kind in RecordType if version == 3 or kind not in VERSION_3_ONLY]


def test_every_record_has_a_body_or_page_contents() -> None:
    assert set(VALUES) == set(BODIES)
    assert {RecordType.PAGE_DATA, RecordType.POSTCOPY_PAGE_DATA} == WITH_CONTENTS
    assert set(BODIES) | WITH_CONTENTS == set(RecordType)


@given(st.data())
def test_bodies_round_trip(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(VALUES)))
    value = data.draw(VALUES[kind])
    body = encode_body(kind, value)
    check_length(kind, len(body), 0)
    assert decode_body(kind, body, 0, 3) == value


@given(st.data())
def test_damaged_bodies_are_refused_or_read_never_worse(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(VALUES)))
    body = bytearray(encode_body(kind, data.draw(VALUES[kind])))
    for _ in range(data.draw(st.integers(0, 3))):
        if body:
            body[data.draw(st.integers(0, min(len(body), 32) - 1))] = data.draw(st.integers(0, 255))
    part = bytes(body[: data.draw(st.integers(0, len(body)))] + data.draw(st.binary(max_size=9)))
    try:
        value = decode_body(kind, part, 1000, 3)
    except DecodeError as error:
        refused = error.offset
        assert 1000 <= refused <= 1000 + len(part)
    else:
        assert encode_body(kind, value) == part


@pytest.mark.parametrize(
    ("kind", "body", "offset"),
    [
        (RecordType.END, b"12345678", 0),
        (RecordType.X86_PV_INFO, struct.pack("<BBHI", 8, 3, 0, 0), 0),
        (RecordType.X86_PV_INFO, struct.pack("<BBHI", 8, 4, 1, 0), 2),
        (RecordType.X86_PV_INFO, struct.pack("<BBHI", 8, 4, 0, 1), 4),
        (RecordType.X86_PV_P2M_FRAMES, struct.pack("<IIQ", 2, 1, 0), 0),
        (RecordType.X86_PV_P2M_FRAMES, struct.pack("<IIQQ", 0, 1, 0, 0), 8),
        (RecordType.X86_PV_VCPU_BASIC, struct.pack("<II", 0, 1), 4),
        (RecordType.X86_PV_VCPU_EXTENDED, bytes(8 + 129), 0),
        (RecordType.X86_PV_VCPU_XSAVE, bytes(8 + 15), 8),
        (RecordType.X86_PV_VCPU_MSRS, bytes(8 + 15), 0),
        (RecordType.SHARED_INFO, bytes(4095), 0),
        (RecordType.X86_TSC_INFO, struct.pack("<IIQII", 0, 0, 0, 0, 1), 20),
        (RecordType.X86_TSC_INFO, bytes(16), 0),
        (RecordType.HVM_CONTEXT, b"", 0),
        (RecordType.HVM_PARAMS, struct.pack("<IIQQ", 2, 0, 0, 0), 0),
        (RecordType.HVM_PARAMS, struct.pack("<IIQQ", 1, 1, 0, 0), 4),
        (RecordType.HVM_PARAMS, struct.pack("<II", 1 << 31, 0), 0),
        (RecordType.CHECKPOINT_DIRTY_PFN_LIST, bytes(12), 0),
        (RecordType.X86_CPUID_POLICY, bytes(23), 0),
        (RecordType.X86_MSR_POLICY, b"", 0),
        (RecordType.POSTCOPY_PFNS, struct.pack("<IIQ", 2, 0, 0), 0),
        (RecordType.POSTCOPY_FAULT, struct.pack("<IIQQ", 2, 0, 0, 0xF << 60), 16),
        (RecordType.POSTCOPY_TRANSITION, b"", 0),
        (RecordType.POSTCOPY_TRANSITION, bytes(16), 0),
    ],
)
def test_bad_bodies_are_refused_by_their_offset(kind: RecordType, body: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match=kind.name) as seen:
        decode_body(kind, body, 0x200, 3)
    assert seen.value.offset == 0x200 + offset
    assert "want" in seen.value.problem


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RecordType.END, b""),
        (RecordType.HVM_CONTEXT, None),
        (RecordType.HVM_CONTEXT, b""),
        (RecordType.X86_TSC_INFO, TscInfo(0, 1 << 32, 0, 0)),
        (RecordType.X86_TSC_INFO, b"1"),
        (RecordType.X86_PV_INFO, PvInfo(8, 3)),
        (RecordType.X86_PV_P2M_FRAMES, P2mFrames(0, 1, pfns_of([]))),
        (RecordType.HVM_PARAMS, [(0, -1)]),
        (RecordType.SHARED_INFO, b"1"),
        (RecordType.PAGE_DATA, None),
        (RecordType.POSTCOPY_FAULT, PageList(pfns_of([1]), b"\xf0")),
        (RecordType.POSTCOPY_TRANSITION, None),
        (RecordType.POSTCOPY_TRANSITION, 1 << 64),
    ],
)
def test_what_a_body_cannot_hold(kind: RecordType, value: Body) -> None:
    with pytest.raises(ValueError, match=kind.name):
        encode_body(kind, value)


def test_the_series_transition_has_no_count() -> None:
    kind = RecordType.POSTCOPY_TRANSITION
    assert encode_body(kind, None, 2) == b""
    assert decode_body(kind, b"", 0, 2) is None
    check_length(kind, 0, 0, 2)
    with pytest.raises(DecodeError, match="want 0"):
        check_length(kind, 8, 0, 2)
    with pytest.raises(DecodeError, match="want 8"):
        check_length(kind, 0, 0, 3)
    with pytest.raises(ValueError, match="POSTCOPY_TRANSITION"):
        encode_body(kind, 7, 2)


def test_zero_content_of_older_senders_is_tolerated() -> None:
    """The specification's erratum."""
    assert decode_body(RecordType.HVM_PARAMS, bytes(8), 0, 2) == []
    for kind in (RecordType.X86_PV_VCPU_EXTENDED, RecordType.X86_PV_VCPU_XSAVE):
        assert decode_body(kind, bytes(8), 0, 2) == VcpuContext(0, b"")


def test_numbers_of_version_3() -> None:
    assert [record_number(kind, 3) for kind in RecordType] == [
        *range(0x13),
        *range(0x40000010, 0x40000017),
        *range(0x40000020, 0x40000023),
    ]


def test_numbers_of_version_2() -> None:
    assert [record_number(kind, 2) for kind in kinds_of(2)] == list(range(0x17))


@pytest.mark.parametrize("kind", sorted(VERSION_3_ONLY))
def test_version_2_has_no_static_data(kind: RecordType) -> None:
    with pytest.raises(ValueError, match=kind.name):
        record_number(kind, 2)
    with pytest.raises(ValueError, match=kind.name):
        decode_body(kind, bytes(48), 0, 2)


@given(U32 | st.integers(0, 0x20) | st.integers(0x40000000, 0x40000020), st.sampled_from([2, 3]))
def test_any_number_is_known_optional_or_refused(number: int, version: int) -> None:
    known = {record_number(kind, version): kind for kind in kinds_of(version)}
    if number in known or number >> 31:
        assert record_type(number, version, 8) is known.get(number)
        return
    with pytest.raises(DecodeError, match=f"{number:#x},"):
        record_type(number, version, 8)


@pytest.mark.parametrize("version", [2, 3])
def test_image_header_round_trip(version: int) -> None:
    data = encode_image_header(ImageHeader(version))
    assert data == b"\xff" * 8 + b"XENF" + struct.pack(">IHHI", version, 0, 0, 0)
    assert decode_image_header(data) == ImageHeader(version)


IMAGE = encode_image_header(ImageHeader(3))


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (bytes(8) + IMAGE[8:], 0),
        (IMAGE[:8] + b"XENG" + IMAGE[12:], 8),
        (IMAGE[:12] + struct.pack(">IHHI", 1, 0, 0, 0), 12),
        (IMAGE[:12] + struct.pack(">IHHI", 4, 0, 0, 0), 12),
        (IMAGE[:12] + struct.pack(">IHHI", 3, 1, 0, 0), 16),
        (IMAGE[:12] + struct.pack(">IHHI", 3, 2, 0, 0), 16),
        (IMAGE[:12] + struct.pack(">IHHI", 3, 0, 1, 0), 18),
        (IMAGE[:12] + struct.pack(">IHHI", 3, 0, 0, 1), 20),
        (IMAGE[:-1], 0),
    ],
)
def test_bad_image_headers(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match="want") as seen:
        decode_image_header(data, 100)
    assert seen.value.offset == 100 + offset


@given(st.sampled_from(DomainType), U32, U32)
def test_domain_header_round_trip(kind: DomainType, major: int, minor: int) -> None:
    header = DomainHeader(kind, 12, major, minor)
    data = encode_domain_header(header)
    assert data == struct.pack("<IHHII", kind, 12, 0, major, minor)
    assert decode_domain_header(data) == header


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (struct.pack("<IHHII", 0, 12, 0, 4, 17), 0),
        (struct.pack("<IHHII", 3, 12, 0, 4, 17), 0),
        (struct.pack("<IHHII", 1, 13, 0, 4, 17), 4),
        (struct.pack("<IHHII", 1, 12, 1, 4, 17), 6),
        (bytes(15), 0),
    ],
)
def test_bad_domain_headers(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match="want") as seen:
        decode_domain_header(data, 24)
    assert seen.value.offset == 24 + offset


def test_headers_that_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="version 4"):
        encode_image_header(ImageHeader(4))
    with pytest.raises(ValueError, match="page shift"):
        encode_domain_header(DomainHeader(page_shift=13))
    with pytest.raises(ValueError, match="domain header"):
        encode_domain_header(DomainHeader(xen_major=-1))
