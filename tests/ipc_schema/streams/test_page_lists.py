"""Frames of records, and page lists."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import page_lists, records
from xen_save_helper.ipc_schema.streams.page_types import (
    PageType,
    has_contents,
    type_octet,
    type_of_octet,
)
from xen_save_helper.ipc_schema.streams.pfns import pfns_of

WITHOUT_CONTENTS = {PageType.BROKEN, PageType.XALLOC, PageType.XTAB}
ENTRIES = st.lists(
    st.tuples(st.integers(0, page_lists.MAX_PFN), st.sampled_from(PageType)), min_size=1
)


def test_types_are_those_of_the_specification() -> None:
    nibbles = {page_type.name: page_type >> 28 for page_type in PageType}
    assert nibbles == {
        "NOTAB": 0x0,
        "L1TAB": 0x1,
        "L2TAB": 0x2,
        "L3TAB": 0x3,
        "L4TAB": 0x4,
        "L1TAB_PIN": 0x9,
        "L2TAB_PIN": 0xA,
        "L3TAB_PIN": 0xB,
        "L4TAB_PIN": 0xC,
        "BROKEN": 0xD,
        "XALLOC": 0xE,
        "XTAB": 0xF,
    }
    assert {kind for kind in PageType if not has_contents(kind)} == WITHOUT_CONTENTS


@given(ENTRIES)
def test_page_list_round_trip(entries: list[tuple[int, PageType]]) -> None:
    pfns = pfns_of(pfn for pfn, _ in entries)
    types = bytes(type_octet(page_type) for _, page_type in entries)
    data = page_lists.encode_page_list(pfns, types)
    words = [pfn | page_type << 32 for pfn, page_type in entries]
    assert data == struct.pack(f"<II{len(words)}Q", len(words), 0, *words)
    assert page_lists.decode_page_list_header(data[:8], "list", 0) == len(entries)
    got_pfns, got_types = page_lists.decode_entries(data[8:], "list", 8)
    assert (got_pfns, got_types) == (pfns, types)
    assert [type_of_octet(octet) for octet in types] == [page_type for _, page_type in entries]
    mask = page_lists.contents_mask(types)
    assert list(mask) == [page_type not in WITHOUT_CONTENTS for _, page_type in entries]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (1 << 52, "reserved bits 0x10000000000000,"),
        (0xFF << 52 | 7, "want bits 59-52 clear"),
        (0x5 << 60, "type 0x5"),
        (0x8 << 60, "type 0x8"),
    ],
)
def test_bad_entries_are_refused_by_their_offset(entry: int, problem: str) -> None:
    data = struct.pack("<3Q", 1, 2, entry)
    with pytest.raises(DecodeError, match=r"pfn\[2\]") as seen:
        page_lists.decode_entries(data, "PAGE_DATA", 100)
    assert seen.value.offset == 116
    assert problem in seen.value.problem


@given(st.integers(0, (1 << 64) - 1))
def test_an_entry_is_legal_or_refused(entry: int) -> None:
    legal = not entry >> 52 & 0xFF and entry >> 60 not in {5, 6, 7, 8}
    data = struct.pack("<Q", entry)
    try:
        pfns, types = page_lists.decode_entries(data, "list", 0)
    except DecodeError:
        assert not legal
    else:
        assert legal
        assert pfns[0] | types[0] << 56 == entry


@pytest.mark.parametrize(
    ("data", "offset"),
    [
        (struct.pack("<II", 0, 0), 40),
        (struct.pack("<II", page_lists.MAX_COUNT + 1, 0), 40),
        (struct.pack("<II", 1, 1), 44),
        (bytes(7), 40),
    ],
)
def test_bad_page_list_headers(data: bytes, offset: int) -> None:
    with pytest.raises(DecodeError, match="want") as seen:
        page_lists.decode_page_list_header(data, "list", 40)
    assert seen.value.offset == offset


def test_half_an_entry() -> None:
    for decode in (page_lists.decode_entries, page_lists.decode_pfns):
        with pytest.raises(DecodeError, match="multiple of 8"):
            decode(bytes(12), "list", 0)


@given(st.lists(st.integers(0, page_lists.MAX_PFN), min_size=1))
def test_a_short_list_is_as_a_long_one(pfns: list[int]) -> None:
    data = page_lists.encode_pfns(pfns)
    assert data == page_lists.encode_page_list(pfns_of(pfns), bytes(len(pfns)))
    assert page_lists.decode_pfns(data[8:], "list", 8) == pfns


@given(ENTRIES)
def test_pfns_of_any_pages_with_contents(entries: list[tuple[int, PageType]]) -> None:
    data = struct.pack(f"<{len(entries)}Q", *(pfn | kind << 32 for pfn, kind in entries))
    bare = [index for index, (_, kind) in enumerate(entries) if kind in WITHOUT_CONTENTS]
    if not bare:
        assert page_lists.decode_pfns(data, "list", 0) == [pfn for pfn, _ in entries]
        return
    with pytest.raises(DecodeError, match="has no contents") as seen:
        page_lists.decode_pfns(data, "list", 100)
    assert seen.value.offset == 100 + 8 * bare[0]


@pytest.mark.parametrize("pfns", [[], [1, 1 << 52], [-1]])
def test_what_no_short_list_can_hold(pfns: list[int]) -> None:
    with pytest.raises(ValueError, match="page list"):
        page_lists.encode_pfns(pfns)


@pytest.mark.parametrize(
    ("pfns", "types"),
    [([], b""), ([1], b""), ([1 << 52], b"\0"), ([1], b"\x50"), ([1], b"\1")],
)
def test_what_no_page_list_can_hold(pfns: list[int], types: bytes) -> None:
    with pytest.raises(ValueError, match="page list"):
        page_lists.encode_page_list(pfns_of(pfns), types)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, records.MAX_LENGTH))
def test_record_header_round_trip(number: int, length: int) -> None:
    data = records.encode_record_header(number, length)
    assert data == struct.pack("<II", number, length)
    assert records.decode_record_header(data, "record", 0) == (number, length)


@given(st.binary(max_size=40))
def test_a_record_ends_on_a_boundary_of_8(body: bytes) -> None:
    record = records.encode_record(7, body)
    assert len(record) % 8 == 0
    assert record[8 : 8 + len(body)] == body
    assert len(record) - 8 - len(body) == records.padding(len(body)) < 8
    records.check_padding(record[8 + len(body) :], "record", 0)


def test_a_length_above_the_limit_is_refused() -> None:
    data = struct.pack("<II", 1, records.MAX_LENGTH + 1)
    with pytest.raises(DecodeError, match="134217729 bytes") as seen:
        records.decode_record_header(data, "record", 24)
    assert seen.value.offset == 28
    with pytest.raises(ValueError, match="want at most"):
        records.encode_record_header(1, records.MAX_LENGTH + 1)


def test_padding_is_zeros() -> None:
    with pytest.raises(DecodeError, match="0x07, want 0") as seen:
        records.check_padding(b"\0\0\x07\0", "record", 50)
    assert seen.value.offset == 52
