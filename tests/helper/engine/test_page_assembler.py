"""POSTCOPY_PAGE_DATA in pieces."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xen_save_helper.helper.engine.page_assembler import RING, PageAssembler
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_number
from xen_save_helper.ipc_schema.streams.page_lists import encode_page_list
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.records import encode_record

PAGE = 4096
END = encode_record(record_number(RecordType.END, 3), b"")


def page_data(pfns: list[int], version: int = 3, type_nibble: int = 0) -> bytes:
    """A record of these pages; each page is full of its pfn."""
    contents = b"".join(struct.pack("<Q", pfn) * (PAGE // 8) for pfn in pfns)
    body = encode_page_list(pfns_of(pfns), bytes([type_nibble << 4]) * len(pfns)) + contents
    return encode_record(record_number(RecordType.POSTCOPY_PAGE_DATA, version), body)


def feed(assembler: PageAssembler, stream: bytes, pieces: list[int]) -> tuple[list[int], int]:
    """Feed `stream` in reads of `pieces` bytes: the pfns that arrived, in order, their contents
    checked, and how much of `stream` was taken."""
    came: list[int] = []
    at = 0
    turn = 0
    while at < len(stream) and not assembler.ended:
        rest = pieces[turn % len(pieces)]
        turn += 1
        taken = 0
        for view in assembler.views():
            part = stream[at : at + min(rest, len(view))]
            view[: len(part)] = part
            at += len(part)
            rest -= len(part)
            taken += len(part)
        assert taken
        whole = assembler.filled(taken)
        held: list[int] = []
        while (run := assembler.take_oldest(3)) is not None:
            first, contents = run
            pages = range(first, first + len(contents) // PAGE)
            assert 1 <= len(pages) <= 3
            assert contents == b"".join(struct.pack("<Q", pfn) * (PAGE // 8) for pfn in pages)
            held += pages
        assert held == whole
        came += whole
    return came, at


@given(
    st.lists(st.lists(st.integers(0, 2**30), min_size=1, max_size=5), max_size=4),
    st.lists(st.integers(1, 3 * PAGE), min_size=1, max_size=20),
    st.sampled_from([2, 3]),
)
def test_pages_in_any_pieces(records: list[list[int]], pieces: list[int], version: int) -> None:
    stream = b"".join(page_data(pfns, version) for pfns in records) + END
    assembler = PageAssembler(version, 0)
    came, taken = feed(assembler, stream + b"what the toolstack says next", pieces)
    assert came == [pfn for pfns in records for pfn in pfns]
    assert assembler.ended
    assert taken == len(stream), "END is the last that is read"


def test_a_record_larger_than_the_ring() -> None:
    pfns = list(range(3 * RING + 5))
    came, _ = feed(PageAssembler(3, 0), page_data(pfns) + END, [10**6])
    assert came == pfns


def test_a_page_is_given_before_those_behind_it_are_there() -> None:
    assembler = PageAssembler(3, 0)
    record = page_data([7, 8, 9])
    came, _ = feed(assembler, record[: 8 + 8 + 24 + PAGE], [10**6])
    assert came == [7]


def fill(assembler: PageAssembler, stream: bytes) -> None:
    """Read until there is no room, or nothing left."""
    at = 0
    while assembler.room and at < len(stream):
        taken = 0
        for view in assembler.views():
            part = stream[at : at + len(view)]
            view[: len(part)] = part
            at += len(part)
            taken += len(part)
        assembler.filled(taken)


def test_no_room_until_pages_are_taken() -> None:
    assembler = PageAssembler(3, 0)
    fill(assembler, page_data(list(range(RING + 1))))
    assert (assembler.room, assembler.held) == (0, RING)
    assert assembler.take(5) is not None
    assert assembler.room == 0, "its place is free when those before it are"
    first, contents = assembler.take_oldest(1) or (-1, memoryview(b""))
    assert (first, len(contents)) == (0, PAGE)
    assert assembler.room == 1
    assert sum(map(len, assembler.views())) == PAGE + 8


def test_a_page_is_taken_once_at_its_turn_or_before() -> None:
    assembler = PageAssembler(3, 0)
    fill(assembler, page_data([10, 11, 12, 13, 40, 41, 7]) + END)
    early = assembler.take(12)
    assert early is not None
    assert bytes(early) == struct.pack("<Q", 12) * (PAGE // 8)
    assert assembler.take(12) is None
    assert assembler.take(99) is None
    runs = []
    while (run := assembler.take_oldest(64)) is not None:
        runs.append((run[0], len(run[1]) // PAGE))
    assert runs == [(10, 2), (13, 1), (40, 2), (7, 1)]
    assert assembler.held == 0


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (encode_record(0x40000014, bytes(8)), "are not a whole number of pages"),
        (encode_record(0x40000014, bytes(8 + 8 + PAGE - 8)), "are not a whole number of pages"),
        (struct.pack("<II", 0x40000014, 2**31), "bytes"),
        (struct.pack("<IIII", 0x40000014, 8 + 8 + PAGE, 2, 0) + bytes(8 + PAGE), "pfns"),
        (page_data([4], type_nibble=0xF), "pfn 0x4 has no contents"),
        (encode_record(0x1, b""), "PAGE_DATA"),
        (encode_record(0x0, bytes(8)), "END"),
        (encode_record(0x7FFF, b""), "unknown mandatory type"),
        (encode_record(0x80000001, bytes(8)), "unknown optional record"),
    ],
)
def test_what_may_not_come(stream: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem) as raised:
        feed(PageAssembler(3, 0x1000), stream, [10**6])
    assert raised.value.offset >= 0x1000


@given(st.binary(min_size=8, max_size=200))
def test_garbage_is_refused_and_nothing_worse(stream: bytes) -> None:
    try:
        feed(PageAssembler(3, 0), stream, [64])
    except DecodeError:
        pass
