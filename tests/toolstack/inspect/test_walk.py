"""`inspect` on cuts of real streams, and on streams made here."""

from __future__ import annotations

import io
import os
import struct
import threading
import tracemalloc
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.streams import CUTS, read_cut
from tests.streams.known import KNOWN, LIVE_ROUNDS
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams import libvirt_header, libxl_stream, xl_header
from xen_save_helper.ipc_schema.streams.libxc_bodies import PageList, TscInfo
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.libxc_record_types import record_number
from xen_save_helper.ipc_schema.streams.libxc_records import encode_body
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DomainHeader,
    ImageHeader,
    encode_domain_header,
    encode_image_header,
)
from xen_save_helper.ipc_schema.streams.libxl_stream import CheckpointState, EmulatorId
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as Xl
from xen_save_helper.ipc_schema.streams.page_lists import encode_page_list
from xen_save_helper.ipc_schema.streams.page_types import PageType, has_contents, type_octet
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.records import encode_record, encode_record_header
from xen_save_helper.toolstack.inspect.summary import PfnSet, Summary
from xen_save_helper.toolstack.inspect.walk import StreamEntry, inspect

PAGE_SIZE = 4096
CUT_DATA = {name: read_cut(name) for name in CUTS}


class Pipe(io.RawIOBase):
    """A file that cannot seek and gives little at once, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000))


def entries_of(data: bytes) -> list[StreamEntry]:
    return list(inspect(io.BytesIO(data)))


def names_of(data: bytes) -> list[str]:
    return [f"{entry.layer} {entry.name}" for entry in entries_of(data)]


def broken_at(data: bytes) -> int | None:
    try:
        list(inspect(io.BytesIO(data)))
    except DecodeError as error:
        return error.offset
    return None


def libxc_head(version: int = 3) -> bytes:
    head = encode_image_header(ImageHeader(version)) + encode_domain_header(DomainHeader())
    return head + (xc(Xc.STATIC_DATA_END) if version == 3 else b"")


def xc(kind: Xc, body: bytes = b"", version: int = 3) -> bytes:
    return encode_record(record_number(kind, version), body)


def pages(
    pfns: Sequence[int],
    kind: Xc = Xc.PAGE_DATA,
    types: Sequence[int] | None = None,
    version: int = 3,
) -> bytes:
    types = types or [PageType.NOTAB] * len(pfns)
    listed = encode_page_list(pfns_of(pfns), bytes(map(type_octet, types)))
    contents = bytes(PAGE_SIZE) * sum(map(has_contents, types))
    return xc(kind, listed + contents, version)


def libxl_head() -> bytes:
    return libxl_stream.encode_header() + xl(Xl.LIBXC_CONTEXT)


def xl(kind: Xl, body: bytes = b"") -> bytes:
    return libxl_stream.encode_record(kind, body)


def transition(listed: PageList, version: int = 3) -> bytes:
    count = len(listed.pfns) if version > 2 else None
    kind = Xc.POSTCOPY_TRANSITION
    return xc(kind, encode_body(kind, count, version), version)


LISTED = PageList(pfns_of([5, 6, 7]), bytes(3))


def postcopy(version: int, lists: int = 1) -> bytes:
    listed = LISTED
    context = libxl_stream.encode_emulator_context(EmulatorId.QEMU_UPSTREAM, 0, b"dm")
    return (
        libxl_head()
        + libxc_head(version)
        + pages([1, 2, 5], version=version)
        + xc(Xc.POSTCOPY_BEGIN, version=version)
        + xc(Xc.X86_TSC_INFO, encode_body(Xc.X86_TSC_INFO, TscInfo(0, 1, 2, 3)), version)
        + xc(Xc.POSTCOPY_PFNS_BEGIN, version=version)
        + xc(Xc.POSTCOPY_PFNS, encode_body(Xc.POSTCOPY_PFNS, listed), version) * lists
        + transition(listed, version)
        + xl(Xl.EMULATOR_CONTEXT, context)
        + xl(Xl.POSTCOPY_TRANSITION_END)
        + pages([7], Xc.POSTCOPY_PAGE_DATA, version=version)
        + pages([5, 6], Xc.POSTCOPY_PAGE_DATA, version=version)
        + xc(Xc.END, version=version)
        + xl(Xl.END)
    )


@pytest.mark.parametrize("name", CUTS)
def test_names_every_record_of_a_real_stream(name: str) -> None:
    known = KNOWN[name]
    entries = entries_of(CUT_DATA[name])
    assert [
        key for key, _ in groupby(f"{entry.layer} {entry.name}" for entry in entries)
    ] == known.names
    by_name = {f"{entry.layer} {entry.name}": entry.summary for entry in entries}
    assert by_name["xl HEADER"]["type"] == known.guest
    assert by_name["libxc DOMAIN_HEADER"] == {"type": known.domain_type, "xen": "4.17"}


@pytest.mark.parametrize("name", CUTS)
def test_the_features_of_a_real_guests_cpu(name: str) -> None:
    (policy,) = (entry for entry in entries_of(CUT_DATA[name]) if entry.name == "X86_CPUID_POLICY")
    assert policy.summary["leaves"] == policy.length // 24
    features = policy.summary["features"]
    assert {"fpu", "sse2", "xsave", "avx2", "syscall", "nx", "lm", "lahf-lm"} <= set(features)
    assert ("pku" in features) == (KNOWN[name].guest != "pv")
    assert not [feature for feature in features if feature.startswith("cpuid:")]


@pytest.mark.parametrize("name", CUTS)
def test_only_live_streams_have_rounds_and_repeats(name: str) -> None:
    summary = Summary()
    for _entry in inspect(io.BytesIO(CUT_DATA[name]), summary):
        pass
    live = KNOWN[name].live
    assert summary.rounds == (LIVE_ROUNDS if live else 1)
    assert bool(summary.repeated_pfns) == live
    assert summary.octets == len(CUT_DATA[name])


@pytest.mark.parametrize("name", CUTS)
def test_a_pipe_gives_the_same_as_a_file(name: str) -> None:
    data = CUT_DATA[name]
    assert list(inspect(Pipe(data))) == entries_of(data)


def test_a_real_pipe() -> None:
    data = CUT_DATA["pvh-live-xen-4.17"]
    read_fd, write_fd = os.pipe()

    def feed() -> None:
        with open(write_fd, "wb") as sink:
            sink.write(data)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with open(read_fd, "rb") as source:
        assert list(inspect(source)) == entries_of(data)
    feeder.join()


def test_the_page_tables_of_a_pv_guest() -> None:
    types = {
        name
        for entry in entries_of(CUT_DATA["pv-save-xen-4.17"])
        if entry.name == "PAGE_DATA"
        for name in entry.summary["types"]
    }
    assert {"NOTAB", "L1TAB", "L2TAB", "L3TAB"} <= types
    assert "L4TAB_PIN" in types


def test_what_follows_the_end_is_shown_not_read() -> None:
    last = entries_of(CUT_DATA["pvh-live-xen-4.17"])[-1]
    assert last.name == "TRAILING"
    assert last.summary["text"].startswith("domain is yours, you are cleared to unpause")


def test_another_stream_behind_the_end() -> None:
    data = small_stream()
    last = entries_of(data + data)[-1]
    assert (last.name, last.offset, last.length) == ("TRAILING", len(data), len(data))
    assert last.summary == {"another_stream": "xl"}


@pytest.mark.parametrize("version", [2, 3])
def test_postcopy(version: int) -> None:
    summary = Summary()
    names = [entry.name for entry in inspect(io.BytesIO(postcopy(version)), summary)]
    start = names.index("POSTCOPY_BEGIN")
    assert names[start:] == [
        "POSTCOPY_BEGIN",
        "X86_TSC_INFO",
        "POSTCOPY_PFNS_BEGIN",
        "POSTCOPY_PFNS",
        "POSTCOPY_TRANSITION",
        "EMULATOR_CONTEXT",
        "POSTCOPY_TRANSITION_END",
        "POSTCOPY_PAGE_DATA",
        "POSTCOPY_PAGE_DATA",
        "END",
        "END",
    ]
    (change,) = (e for e in entries_of(postcopy(version)) if e.name == "POSTCOPY_TRANSITION")
    assert change.summary == ({"listed": 3} if version == 3 else {})
    assert (summary.rounds, summary.postcopy_pfns, summary.postcopy_pages) == (1, 3, 3)
    assert (summary.pages_with_contents, summary.distinct_pages, summary.repeated_pfns) == (3, 5, 1)


def test_a_list_of_postcopy_pages_that_is_lost() -> None:
    data = postcopy(3, lists=0)
    place = data.index(transition(LISTED)) + 8
    with pytest.raises(DecodeError, match="0 pages were listed, want 3") as seen:
        entries_of(data)
    assert seen.value.offset == place
    # The series' transition has no count.
    assert names_of(postcopy(2, lists=0))[-1] == "libxl END"


def test_checkpoints_give_the_stream_back_to_libxl() -> None:
    data = (
        libxl_head()
        + libxc_head()
        + pages([1, 2])
        + xc(Xc.CHECKPOINT)
        + xl(Xl.CHECKPOINT_STATE, libxl_stream.encode_checkpoint_state(CheckpointState.NEW))
        + xl(Xl.CHECKPOINT_END)
        + pages([3])
        + xc(Xc.END)
        + xl(Xl.END)
    )
    summary = Summary()
    names = [entry.name for entry in inspect(io.BytesIO(data), summary)]
    assert names[names.index("CHECKPOINT") :] == [
        "CHECKPOINT",
        "CHECKPOINT_STATE",
        "CHECKPOINT_END",
        "PAGE_DATA",
        "END",
        "END",
    ]
    assert summary.rounds == 2


def test_a_round_begins_where_pfns_go_back() -> None:
    data = libxc_head() + pages([1, 2]) + pages([3, 9]) + pages([2]) + pages([4]) + xc(Xc.END)
    rounds = [entry.summary["round"] for entry in entries_of(data) if entry.name == "PAGE_DATA"]
    assert rounds == [1, 1, 2, 2]


def test_unknown_optional_records_are_skipped() -> None:
    odd = encode_record(0x80000123, b"abc")
    names = names_of(
        libxl_stream.encode_header()
        + odd
        + xl(Xl.LIBXC_CONTEXT)
        + libxc_head()
        + odd
        + xc(Xc.END)
        + xl(Xl.END)
    )
    assert "libxl OPTIONAL_0x80000123" in names
    assert "libxc OPTIONAL_0x80000123" in names


VIRSH_XML = b"<domain type='xen'><name>n</name><os><type>hvm</type></os></domain>\0"


def test_a_file_of_virsh_save() -> None:
    body = libxl_head() + libxc_head() + xc(Xc.END) + xl(Xl.END)
    entries = entries_of(libvirt_header.encode(VIRSH_XML) + body)
    assert entries[0].layer == "libvirt"
    assert entries[0].summary == {"xml": len(VIRSH_XML), "name": "n", "type": "hvm"}
    assert entries[1].offset == entries[0].length == 64 + len(VIRSH_XML)
    assert [entry.layer for entry in entries[1:3]] == ["libxl", "libxl"]


@pytest.mark.parametrize(
    ("xml", "problem"),
    [
        (b"<domain>\0", "no element found"),
        (b"<network><name>n</name></network>\0", "want <domain>"),
        (b"<!DOCTYPE d [<!ENTITY a 'b'>]><domain>&a;</domain>\0", "has a document type"),
        (b"", "want 1 to"),
    ],
)
def test_a_bad_xml(xml: bytes, problem: str) -> None:
    with pytest.raises(DecodeError, match=problem):
        entries_of(libvirt_header.encode(xml) + libxl_head())


@pytest.mark.parametrize("version", [0, 3])
def test_an_unknown_version_of_libvirt(version: int) -> None:
    with pytest.raises(DecodeError, match="want 1 or 2") as seen:
        entries_of(libvirt_header.encode(VIRSH_XML, version))
    assert seen.value.offset == 16


HEAD = len(libxc_head())
XL_HEAD = len(libxl_head())


@pytest.mark.parametrize(
    ("data", "offset", "problem"),
    [
        (b"", 0, "empty"),
        (b"#!/bin/sh\n", 0, "want the start of an xl file"),
        (libxc_head() + encode_record(0x13, b""), HEAD, "unknown mandatory type 0x13"),
        (libxc_head(2) + encode_record(0x40000010, b""), 40, "unknown mandatory"),
        (libxc_head(2) + encode_record(0x10, b"12345678"), 44, "want 0"),
        (libxc_head() + xc(Xc.POSTCOPY_COMPLETE), HEAD, "back channel"),
        (libxc_head() + pages([1], Xc.POSTCOPY_PAGE_DATA), HEAD, "POSTCOPY_TRANSITION"),
        (libxc_head()[:-8] + pages([1]), 40, "STATIC_DATA_END"),
        (libxc_head() + xc(Xc.END, b"12345678"), HEAD + 4, "want 0"),
        (libxc_head() + encode_record_header(1, 17), HEAD + 4, "in steps of 8"),
        (libxc_head() + encode_record_header(1, 1 << 20) + b"\xff\xff\0\0\0\0\0\0",
         HEAD + 16, "the stream ends here"),
        (libxc_head() + encode_record_header(1, 16) + b"\xff" + bytes(7), HEAD + 8, "at most 1"),
        (libxc_head() + pages([1])[:-1], HEAD + 24 + PAGE_SIZE - 1, "want at least 1"),
        (libxc_head() + encode_record_header(1, 24 + PAGE_SIZE) + pages([1])[8:], HEAD + 4,
         f"want {16 + PAGE_SIZE}"),
        (libxc_head() + encode_record(0x80000001, b"abc")[:-1] + b"x", HEAD + 15, "want 0"),
        (libxl_stream.encode_header() + xl(Xl.END), 16, "LIBXC_CONTEXT"),
        (libxl_head()[:16] + xl(Xl.CHECKPOINT_END), 16, "out of place"),
        (libxl_head() + libxc_head() + xc(Xc.END) + xl(Xl.LIBXC_CONTEXT), XL_HEAD + HEAD + 8,
         "a second one"),
    ],
)  # fmt: skip
def test_says_where_a_stream_breaks(data: bytes, offset: int, problem: str) -> None:
    with pytest.raises(DecodeError) as seen:
        entries_of(data)
    assert problem in seen.value.problem
    assert seen.value.offset == offset


def test_a_length_above_the_limit() -> None:
    header = struct.pack("<II", Xc.PAGE_DATA, 1 << 30)
    with pytest.raises(DecodeError, match="want at most 134217728") as seen:
        entries_of(libxc_head() + header)
    assert seen.value.offset == HEAD + 4


def test_after_a_postcopy_transition_only_end_may_follow() -> None:
    data = postcopy(3)[: -len(xl(Xl.END))]
    context = libxl_stream.encode_emulator_context(EmulatorId.QEMU_UPSTREAM, 0, b"dm")
    with pytest.raises(DecodeError, match="after a postcopy transition, want END"):
        entries_of(data + xl(Xl.EMULATOR_CONTEXT, context))


@pytest.mark.parametrize("config", [b"[]", b"{", b"[" * 100_000, b'{"c_info": 1}'])
def test_a_bad_configuration(config: bytes) -> None:
    with pytest.raises(DecodeError, match="libxl_domain_config"):
        entries_of(xl_header.encode_header(config))


def small_stream() -> bytes:
    config = xl_header.encode_header(b'{"c_info": {"name": "n", "type": "pvh"}}')
    absent = pages([8, 9], types=[PageType.XTAB, PageType.XALLOC])
    params = xc(Xc.HVM_PARAMS, encode_body(Xc.HVM_PARAMS, [(1, 2)]))
    return config + libxl_head() + libxc_head() + absent + params + xc(Xc.END) + xl(Xl.END)


@pytest.mark.parametrize("as_pipe", [False, True])
@pytest.mark.parametrize("of", ["xl", "virsh"])
def test_truncated_at_each_offset(as_pipe: bool, of: str) -> None:
    data = small_stream()
    if of == "virsh":
        data = libvirt_header.encode(VIRSH_XML) + data[data.index(libxl_head()) :]
    entries_of(data)
    for size in range(len(data)):
        part = data[:size]
        with pytest.raises(DecodeError) as seen:
            list(inspect(Pipe(part) if as_pipe else io.BytesIO(part)))
        assert seen.value.offset <= size


@given(st.data())
@settings(max_examples=400)
def test_a_damaged_stream_is_refused_or_read_and_nothing_worse(data: st.DataObject) -> None:
    damaged = bytearray(small_stream() if data.draw(st.booleans()) else postcopy(3)[:2000])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place] = data.draw(st.integers(0, 255))
    tracemalloc.start()
    try:
        offset = broken_at(bytes(damaged))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert offset is None or 0 <= offset <= len(damaged)
    assert peak < 8 << 20


PFNS = st.integers(0, 40) | st.integers(4000, 9000) | st.integers(0, (1 << 52) - 1)


@given(st.lists(st.lists(PFNS, unique=True), max_size=8))
def test_a_pfn_set_is_a_set(batches: list[list[int]]) -> None:
    pfns, model = PfnSet(), set[int]()
    for batch in batches:
        known = pfns.add(np.array(sorted(batch), np.uint64))
        assert set(known.tolist()) == model & set(batch)
        model |= set(batch)
        assert pfns.count == len(model)


def test_pfns_far_apart_are_not_counted() -> None:
    pfns = PfnSet()
    for start in range(0, 1 << 18, 1 << 16):
        pfns.add(np.arange(start, start + (1 << 16), dtype=np.uint64) << np.uint64(12))
    assert pfns.overflowed
    assert pfns.count == 1 << 17
