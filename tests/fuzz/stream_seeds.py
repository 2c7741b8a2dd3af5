"""Whole streams to begin from: cuts of real ones, and streams of every record that the tables have.

Each seed knows where its records begin.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Final

from tests.fuzz.mutations import Seed, joined
from tests.streams import CUTS, read_cut
from xen_save_helper.ipc_schema.streams import (
    libxc_stream,
    libxl_stream,
    page_lists,
    records,
    xl_header,
)
from xen_save_helper.ipc_schema.streams.libxc_bodies import (
    Body,
    P2mFrames,
    PageList,
    PvInfo,
    TscInfo,
    VcpuContext,
)
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType as Xc
from xen_save_helper.ipc_schema.streams.libxc_record_types import record_number
from xen_save_helper.ipc_schema.streams.libxc_records import encode_body
from xen_save_helper.ipc_schema.streams.libxc_stream import DomainHeader, DomainType, ImageHeader
from xen_save_helper.ipc_schema.streams.libxl_stream import CheckpointState, EmulatorId
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType as Xl
from xen_save_helper.ipc_schema.streams.page_types import PageType, type_octet
from xen_save_helper.ipc_schema.streams.pfns import pfns_of, selected
from xen_save_helper.toolstack.inspect.walk import inspect

PAGE: Final = 4096
MEMORY: Final = 160 << 20
"""Of a domain that all of these streams fit into."""
_LARGEST_RECORD: Final = 20 << 10
"""Octets: real records above are left out, page contents being what they mostly are."""

OPTIONAL_RECORD: Final = records.encode_record(0x80001234, b"whatever this may be")


def pages(*entries: tuple[int, int]) -> PageList:
    """From (pfn, PageType)."""
    pfns = pfns_of(pfn for pfn, _ in entries)
    return PageList(pfns, bytes(type_octet(kind) for _, kind in entries))


def page_data(kind: Xc, version: int, *entries: tuple[int, int]) -> bytes:
    """A record with contents."""
    listed = pages(*entries)
    present = page_lists.contents_mask(listed.types)
    there = selected(listed.pfns, present)
    contents = b"".join(struct.pack("<Q", pfn) * (PAGE // 8) for pfn in there)
    body = page_lists.encode_page_list(listed.pfns, listed.types) + contents
    return records.encode_record(record_number(kind, version), body)


BODIES: Final[tuple[tuple[Xc, Body], ...]] = (
    (Xc.END, None),
    (Xc.X86_PV_INFO, PvInfo(8, 4)),
    (Xc.X86_PV_INFO, PvInfo(4, 3)),
    (Xc.X86_PV_P2M_FRAMES, P2mFrames(0, 1023, pfns_of([7, 9]))),
    (Xc.X86_PV_VCPU_BASIC, VcpuContext(0, bytes(range(64)))),
    (Xc.X86_PV_VCPU_EXTENDED, VcpuContext(1, bytes(128))),
    (Xc.X86_PV_VCPU_XSAVE, VcpuContext(2, bytes(40))),
    (Xc.X86_PV_VCPU_MSRS, VcpuContext(3, bytes(32))),
    (Xc.SHARED_INFO, bytes(4096)),
    (Xc.X86_TSC_INFO, TscInfo(1, 2_400_000, 123_456_789_012, 3)),
    (Xc.HVM_CONTEXT, b"\x01\x02registers" * 9),
    (Xc.HVM_PARAMS, [(1, 0xFEFFC), (17, 0xFEFFF), (2, 5), (18, 6)]),
    (Xc.HVM_PARAMS, []),
    (Xc.TOOLSTACK, b"xenstore"),
    (Xc.VERIFY, None),
    (Xc.CHECKPOINT, None),
    (Xc.CHECKPOINT_DIRTY_PFN_LIST, pfns_of([1, 2, 2**40])),
    (Xc.STATIC_DATA_END, None),
    (Xc.X86_CPUID_POLICY, bytes(48)),
    (Xc.X86_MSR_POLICY, bytes(16)),
    (Xc.POSTCOPY_BEGIN, None),
    (Xc.POSTCOPY_PFNS_BEGIN, None),
    (Xc.POSTCOPY_PFNS, pages((1, PageType.NOTAB), (2, PageType.XALLOC), (3, PageType.XTAB))),
    (Xc.POSTCOPY_TRANSITION, 4),
    (Xc.POSTCOPY_FAULT, pages((1, PageType.NOTAB), (2**52 - 1, PageType.NOTAB))),
    (Xc.POSTCOPY_COMPLETE, None),
)
"""A value for each record of the libxc stream but those with page contents."""

_ONLY_VERSION_3: Final = frozenset({Xc.STATIC_DATA_END, Xc.X86_CPUID_POLICY, Xc.X86_MSR_POLICY})


def libxc_record(kind: Xc, version: int, value: Body = None) -> bytes:
    if version == 2 and kind is Xc.POSTCOPY_TRANSITION:
        value = None  # the series' says nothing of what was listed
    return records.encode_record(record_number(kind, version), encode_body(kind, value, version))


def libxc_records(version: int) -> list[bytes]:
    """Every record that this version has."""
    made = [
        libxc_record(kind, version, value)
        for kind, value in BODIES
        if version > 2 or kind not in _ONLY_VERSION_3
    ]
    with_contents = ((1, PageType.NOTAB), (2, PageType.XTAB), (3, PageType.L1TAB))
    made.append(page_data(Xc.PAGE_DATA, version, *with_contents))
    made.append(page_data(Xc.POSTCOPY_PAGE_DATA, version, (5, PageType.NOTAB)))
    return [*made, OPTIONAL_RECORD]


def libxl_bodies() -> list[tuple[Xl, bytes]]:
    """Every record of the libxl stream."""
    qemu = EmulatorId.QEMU_UPSTREAM
    entries = [(b"physmap/0/start_addr", b"f0000000"), (b"physmap/0/name", b"vga.vram")]
    return [
        (Xl.END, b""),
        (Xl.LIBXC_CONTEXT, b""),
        (Xl.EMULATOR_XENSTORE_DATA, libxl_stream.encode_emulator_xenstore_data(qemu, 0, entries)),
        (Xl.EMULATOR_XENSTORE_DATA, libxl_stream.encode_emulator_xenstore_data(qemu, 0, [])),
        (Xl.EMULATOR_CONTEXT, libxl_stream.encode_emulator_context(qemu, 0, b"QEVM" * 30)),
        (Xl.CHECKPOINT_END, b""),
        (Xl.CHECKPOINT_STATE, libxl_stream.encode_checkpoint_state(CheckpointState.SVM_READY)),
        (Xl.CHECKPOINT_STATE, struct.pack("<II", 3, 0)),
        (Xl.POSTCOPY_TRANSITION_END, b""),
    ]


def libxl_records() -> list[bytes]:
    return [libxl_stream.encode_record(kind, body) for kind, body in libxl_bodies()]


def domain_config(kind: str = "pvh") -> bytes:
    """As `xl` stores it: libxl_domain_config's JSON and a NUL."""
    config = {
        "c_info": {"type": kind, "name": "fuzzed", "uuid": "00000000-0000-0000-0000-000000000001"},
        "b_info": {"max_vcpus": 1, "max_memkb": MEMORY >> 10, "target_memkb": MEMORY >> 10},
        "simulated": {"workload": "idle", "rate": None, "seed": 1},
    }
    return json.dumps(config).encode() + b"\0"


# Streams of our own making


def _headers(version: int, kind: DomainType = DomainType.X86_HVM) -> list[bytes]:
    return [
        libxc_stream.encode_image_header(ImageHeader(version)),
        libxc_stream.encode_domain_header(DomainHeader(kind)),
    ]


def _named(version: int, *kinds: Xc) -> list[bytes]:
    values = dict(reversed(BODIES))
    return [libxc_record(kind, version, values[kind]) for kind in kinds]


def _memory(version: int, first: int) -> list[bytes]:
    return [
        page_data(Xc.PAGE_DATA, version, (pfn, PageType.NOTAB), (pfn + 1, PageType.XTAB))
        for pfn in (first, first + 8)
    ]


_STATIC: Final = (Xc.X86_CPUID_POLICY, Xc.X86_MSR_POLICY, Xc.STATIC_DATA_END)
_STATE: Final = (Xc.X86_TSC_INFO, Xc.HVM_CONTEXT, Xc.HVM_PARAMS)


def libxc_plain(version: int) -> list[bytes]:
    """A whole libxc stream of an HVM guest, piece by piece."""
    static = _named(version, *_STATIC) if version > 2 else []
    rounds = _memory(version, 1) + _memory(version, 1)
    return [*_headers(version), *static, *rounds, *_named(version, *_STATE, Xc.END)]


def libxc_postcopy(version: int, transition: Iterable[bytes] = ()) -> list[bytes]:
    """A libxc stream that ends by postcopy; `transition` are libxl's records in its middle."""
    left = pages((1, PageType.NOTAB), (2, PageType.XALLOC), (3, PageType.XTAB), (4, PageType.L1TAB))
    return [
        *libxc_plain(version)[: -len(_STATE) - 1],
        *_named(version, Xc.POSTCOPY_BEGIN, *_STATE, Xc.POSTCOPY_PFNS_BEGIN),
        libxc_record(Xc.POSTCOPY_PFNS, version, left),
        *_named(version, Xc.POSTCOPY_TRANSITION),
        *transition,
        page_data(Xc.POSTCOPY_PAGE_DATA, version, (4, PageType.NOTAB)),
        page_data(Xc.POSTCOPY_PAGE_DATA, version, (1, PageType.NOTAB)),
        *_named(version, Xc.END),
    ]


def libxl_streams() -> list[list[bytes]]:
    """Whole libxl streams, piece by piece: plain, postcopy, Remus; with and without emulator."""
    header = libxl_stream.encode_header()
    by_kind = {kind: libxl_stream.encode_record(kind, body) for kind, body in libxl_bodies()}
    emulator = [
        libxl_stream.encode_record(*libxl_bodies()[2]),
        by_kind[Xl.EMULATOR_CONTEXT],
    ]
    begin, end = [header, by_kind[Xl.LIBXC_CONTEXT]], by_kind[Xl.END]
    checkpoint = [*_named(3, Xc.CHECKPOINT), *emulator, by_kind[Xl.CHECKPOINT_END]]
    streams = []
    for version in (2, 3):
        plain = libxc_plain(version)
        streams += [
            [*begin, *plain, *emulator, end],
            [*begin, *plain, OPTIONAL_RECORD, end],
            [
                *begin,
                *libxc_postcopy(version, [*emulator, by_kind[Xl.POSTCOPY_TRANSITION_END]]),
                end,
            ],
        ]
    streams.append(
        [*begin, *libxc_plain(3)[:-1], *checkpoint, *checkpoint, *_named(3, Xc.END), end]
    )
    return streams


def controller_streams() -> list[list[bytes]]:
    """What the controller itself reads of a stream: libxl's records, without libxc's part."""
    parts = {kind: libxl_stream.encode_record(kind, body) for kind, body in libxl_bodies()}
    xenstore = libxl_stream.encode_record(*libxl_bodies()[2])
    emulator = [xenstore, parts[Xl.EMULATOR_CONTEXT]]
    begin = [libxl_stream.encode_header(), parts[Xl.LIBXC_CONTEXT]]
    end = parts[Xl.END]
    return [
        [*begin, end],
        [*begin, *emulator, end],
        [*begin, OPTIONAL_RECORD, *emulator, end],
        [*begin, *emulator, parts[Xl.POSTCOPY_TRANSITION_END], end],
        [*begin, parts[Xl.POSTCOPY_TRANSITION_END], end],
    ]


# Real streams


@cache
def real_streams() -> tuple[tuple[bytes, ...], ...]:
    """The cuts of real xl streams, piece by piece, without their large records."""
    return tuple(tuple(_pieces(read_cut(name))) for name in CUTS)


def _pieces(stream: bytes) -> Iterator[bytes]:
    for entry in inspect(io.BytesIO(stream)):
        size = entry.length
        if not entry.name.endswith("HEADER") and entry.name != "TRAILING":
            size += records.HEADER_SIZE + records.padding(entry.length)
        if entry.name != "PAGE_DATA" or size <= _LARGEST_RECORD:
            yield stream[entry.offset : entry.offset + size]


def real_libxc_streams() -> list[list[bytes]]:
    """The libxc streams in them, piece by piece."""
    found = []
    for pieces in real_streams():
        start = next(n for n, piece in enumerate(pieces) if piece[8:12] == b"XENF")
        # END is the first record of type and length 0 in there.
        end = pieces.index(bytes(records.HEADER_SIZE), start)
        found.append(list(pieces[start : end + 1]))
    return found


def xl_headers() -> list[Seed]:
    """xl's headers, real ones and those that we write."""
    size = xl_header.HEADER_SIZE
    headers = [xl_header.encode_header(domain_config(kind)) for kind in ("pvh", "hvm")]
    headers += [pieces[0] for pieces in real_streams()]
    marks = (0, 32, 36, 40, 44, 48, 52)
    return [Seed(header, marks) for header in headers if len(header) > size]


def xl_streams() -> list[Seed]:
    """Whole streams as `xl save` writes them, real ones and of our own making."""
    ours = [xl_header.encode_header(domain_config()), *libxl_streams()[0]]
    return [joined(*pieces) for pieces in (ours, *real_streams())]
