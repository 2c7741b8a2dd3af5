"""The memory of real PVH guests goes through our restore and our save, and comes out the same.

The whole streams are not in the repository; see test_real_streams.
"""

from __future__ import annotations

import lzma
import struct
from pathlib import Path

import pytest

from tests.helper.engine.test_restore import new_domain, records, restored, stream_of_standing
from tests.streams import parameters
from tests.streams import whole as whole_stream
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.xen.hvm_context import needed
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

PAGE_SIZE = 4096
NO_CONTENTS = {0xD, 0xE, 0xF}
HAVE_PFN = (1 << 52) - 1
_PRESENT = 1


def contents_of(stream: bytes) -> tuple[dict[int, bytes], bytes]:
    """The last contents of each page in a libxc stream, and its HVM context; read by hand, so that
    our decoders do not judge themselves."""
    pages: dict[int, bytes] = {}
    context = b""
    for _offset, number, body in records(stream):
        if number == RecordType.HVM_CONTEXT:
            context = body
        if number != RecordType.PAGE_DATA:
            continue
        (count,) = struct.unpack_from("<I", body)
        place = 8 + 8 * count
        for entry in struct.unpack_from(f"<{count}Q", body, 8):
            if entry >> 60 not in NO_CONTENTS:
                pages[entry & HAVE_PFN] = body[place : place + PAGE_SIZE]
                place += PAGE_SIZE
        assert place == len(body)
    return pages, context


@pytest.mark.parametrize("packed", [*parameters("hvm"), *parameters("pvh")])
def test_a_context_names_the_root_of_the_page_tables(packed: Path | None) -> None:
    """A 64-bit Linux: it has a page that, as a PML4, maps the kernel, and other tables."""
    whole = lzma.decompress(whole_stream(packed).read_bytes())
    pages, context = contents_of(whole[whole.index(b"\xff" * 8 + b"XENF") :])
    (what, (root,)) = *needed(context), *needed(context).values()
    assert what == "cr3"
    entries = struct.unpack("<512Q", pages[root])
    assert entries[511] & _PRESENT
    tables = [entry for entry in entries if entry & _PRESENT]
    assert len(tables) > 10
    assert all((entry & HAVE_PFN) >> 12 in pages for entry in tables)


@pytest.mark.parametrize("packed", parameters("pvh"))
def test_a_real_guest_and_back(packed: Path | None, host: SimulatedHost) -> None:
    whole = lzma.decompress(whole_stream(packed).read_bytes())
    libxc = whole[whole.index(b"\xff" * 8 + b"XENF") :]
    pages, context = contents_of(libxc)
    domid = new_domain(host, "real", 96 << 20)
    restored(host, domid, libxc[: records(libxc)[-1][0] + 8])

    with open_on_host(host.directory, domid) as domain:
        cleared = {domain.hvm_param_get(1), domain.hvm_param_get(17)}
        memory = memoryview(domain.shared.memory)
        wrong = [
            pfn
            for pfn, page in pages.items()
            if pfn not in cleared and memory[pfn * PAGE_SIZE : (pfn + 1) * PAGE_SIZE] != page
        ]
        memory.release()
    assert not wrong

    again, its_context = contents_of(stream_of_standing(host, domid))
    assert its_context == context
    assert set(again) == set(pages)
    assert [pfn for pfn in pages if pfn not in cleared and again[pfn] != pages[pfn]] == []
