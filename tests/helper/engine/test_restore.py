"""Restores into simulated domains: whole streams, damaged ones, and streams of a real Xen."""

from __future__ import annotations

import errno
import os
import random
import socket
import struct
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import HostFactory
from tests.helper.engine.running import Controller, restore, restore_job, save, save_job, saving
from tests.helper.hypervisors.simulated.guests import hvm_params, populated, read_pages
from tests.streams import read_cut
from xen_save_helper.helper.engine.restore_order import NEXT, RecordOrder
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.hypervisors.simulated.domain_files import create_host
from xen_save_helper.helper.job import Job, RestoreResults
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures, StreamType
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.page_lists import encode_page_list
from xen_save_helper.ipc_schema.streams.pfns import pfns_of
from xen_save_helper.ipc_schema.streams.phases import Stage
from xen_save_helper.ipc_schema.streams.records import decode_record_header, encode_record, padding
from xen_save_helper.toolstack.hosts.interface import GuestState
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

pytestmark = pytest.mark.usefixtures("no_leaks")

MEMORY = 2 << 20
PAGE = 4096
HEADERS = 24 + 16
PARAMETERS = restore_job(store_evtchn=3, console_evtchn=4)


def in_memory(work: Callable[[int], Any], content: bytes = b"") -> bytes:
    """Call `work` with a file that has `content`, at its start; returns its content afterwards."""
    fd = os.memfd_create("stream")
    try:
        os.write(fd, content)
        os.lseek(fd, 0, os.SEEK_SET)
        work(fd)
        os.lseek(fd, 0, os.SEEK_SET)
        return os.read(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def stream_of(host: SimulatedHost, domid: int, debug: bool = False) -> bytes:
    job = save_job(live=debug, debug=debug)
    return in_memory(lambda fd: save(host, domid, fd, controller=saving(host, domid), job=job))


def restored(
    host: SimulatedHost,
    domid: int,
    stream: bytes,
    controller: Controller | None = None,
    job: Job = PARAMETERS,
) -> RestoreResults:
    results: list[RestoreResults] = []
    in_memory(
        lambda fd: results.append(restore(host, domid, fd, controller=controller, job=job)),
        stream,
    )
    return results[0]


def records(stream: bytes) -> list[tuple[int, int, bytes]]:
    """(offset, number, body) of each record of a libxc stream, END included."""
    found = []
    offset = HEADERS
    while True:
        number, length = decode_record_header(stream[offset : offset + 8], "record", offset)
        found.append((offset, number, stream[offset + 8 : offset + 8 + length]))
        offset += 8 + length + padding(length)
        if number == RecordType.END:
            return found


def joined(stream: bytes, body: list[tuple[int, int, bytes]]) -> bytes:
    return stream[:HEADERS] + b"".join(encode_record(number, data) for _, number, data in body)


@cache
def small_stream() -> list[bytes]:
    """Filled by the first test that needs it, so that the stream is made only once."""
    return []


@pytest.fixture
def small(host: SimulatedHost) -> bytes:
    """A whole stream of a small guest, version 3. The guest is gone."""
    kept = small_stream()
    if not kept:
        domid = host.create_guest("source", MEMORY, "random", type="pvh")
        kept.append(stream_of(host, domid))
        host.destroy(domid)
    return kept[0]


@pytest.fixture
def empty(host: SimulatedHost) -> int:
    """A new domain, as large as that of `small`."""
    return new_domain(host, "empty", MEMORY)


def new_domain(host: SimulatedHost, name: str, memory: int) -> int:
    return host.create(
        {
            "c_info": {"type": "pvh", "name": name},
            "b_info": {
                "max_vcpus": 1,
                "max_memkb": memory // 1024,
                "target_memkb": memory // 1024,
            },
        },
        name,
    )


def test_saving_what_was_restored_gives_the_same_stream(
    host: SimulatedHost, small: bytes, empty: int
) -> None:
    controller = Controller({"static_data_done": 0})
    results = restored(host, empty, small, controller)
    assert controller.called("static_data_done") == [{"missing": 0}]
    assert results.statistics.bytes == len(small)
    again = stream_of_standing(host, empty)
    assert records(again) == records(small)


def stream_of_standing(host: SimulatedHost, domid: int) -> bytes:
    """The stream of a domain that never ran here: it counts as suspended."""
    with open_on_host(host.directory, domid) as domain:
        domain.shared.domain.shutdown = 2
    return in_memory(
        lambda fd: save(
            host, domid, fd, controller=Controller({"suspend": 1, "switch_qemu_logdirty": 0})
        )
    )


def test_the_reader_stops_at_end(host: SimulatedHost, small: bytes, empty: int) -> None:
    rest: list[bytes] = []

    def work(fd: int) -> None:
        restore(host, empty, fd)
        rest.append(os.read(fd, 100))

    in_memory(work, small + b"the toolstack's records")
    assert rest == [b"the toolstack's records"]


def test_version_2_has_no_static_data(host: SimulatedHost, small: bytes, empty: int) -> None:
    static = {
        RecordType.X86_CPUID_POLICY,
        RecordType.X86_MSR_POLICY,
        RecordType.STATIC_DATA_END,
    }
    old = joined(small, [row for row in records(small) if row[1] not in static])
    old = old[:12] + struct.pack(">I", 2) + old[16:]
    controller = Controller({"static_data_done": 0})
    restored(host, empty, old, controller)
    assert controller.called("static_data_done") == [{"missing": 3}]
    with open_on_host(host.directory, empty) as domain:
        assert domain.hvm_getcontext()


def test_unknown_optional_records_are_passed_over(
    host: SimulatedHost, small: bytes, empty: int
) -> None:
    body = records(small)
    stranger = (0, 0x80001234, b"whatever this may be")
    stream = joined(small, [row for pair in ((stranger, row) for row in body) for row in pair])
    controller = Controller({"static_data_done": 0})
    restored(host, empty, stream, controller)
    assert "ignoring optional record 0x80001234" in controller.logged()


def test_what_follows_an_optional_record_must_be_zeros_too(
    host: SimulatedHost, small: bytes, empty: int
) -> None:
    damaged = encode_record(0x80001234, b"five!")[:-1] + b"\x01"
    stream = small[:HEADERS] + damaged + small[HEADERS:]
    with pytest.raises(DecodeError, match="optional record padding") as refused:
        restored(host, empty, stream)
    assert refused.value.offset == HEADERS + len(damaged) - 1


def with_record(number: int, body: bytes, place: int) -> Callable[[bytes], bytes]:
    def change(stream: bytes) -> bytes:
        rows = records(stream)
        rows.insert(place % len(rows), (0, number, body))
        return joined(stream, rows)

    return change


def without(kind: RecordType) -> Callable[[bytes], bytes]:
    return lambda stream: joined(stream, [row for row in records(stream) if row[1] != kind])


def at(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda stream: stream[:offset] + data + stream[offset + len(data) :]


def pages(*entries: tuple[int, int]) -> bytes:
    """A page list and no contents, from (pfn, type's top four bits)."""
    return encode_page_list(
        pfns_of(pfn for pfn, _ in entries), bytes(nibble << 4 for _, nibble in entries)
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (at(0, b"\0"), "marker"),
        (at(15, b"\x07"), "version 7"),
        (at(16, b"\x80"), "0x80|big-endian"),
        (at(24, b"\x09"), "type 0x9"),
        (with_record(0x7777, b"", 0), "unknown mandatory type 0x7777"),
        (with_record(RecordType.CHECKPOINT, b"", 4), "a checkpoint in a plain stream"),
        (with_record(RecordType.STATIC_DATA_END, b"", 4), "may not come here"),
        (with_record(RecordType.X86_PV_INFO, bytes(8), 0), "may not come here"),
        (with_record(RecordType.POSTCOPY_BEGIN, b"", 4), "was not agreed on"),
        (with_record(RecordType.PAGE_DATA, b"", 4), "too short for a page list"),
        (with_record(RecordType.PAGE_DATA, pages((1, 0)), 4), "take 4112"),
        (with_record(RecordType.PAGE_DATA, pages((2**40, 0xF)), 4), "outside the domain"),
        (with_record(RecordType.PAGE_DATA, pages((1, 0xF)) + bytes(PAGE), 4), "take 16"),
        (with_record(RecordType.PAGE_DATA, struct.pack("<IIQ", 9, 0, 1), 4), "list of 9 pfns"),
        (with_record(RecordType.VERIFY, bytes(8), 4), "VERIFY"),
        (with_record(RecordType.X86_TSC_INFO, bytes(8), 4), "X86_TSC_INFO"),
        (without(RecordType.STATIC_DATA_END), "may not come here"),
        (without(RecordType.HVM_CONTEXT), "HVM_CONTEXT"),
    ],
)
def test_streams_that_are_not_right(
    host: SimulatedHost,
    small: bytes,
    empty: int,
    change: Callable[[bytes], bytes],
    problem: str,
) -> None:
    with pytest.raises(DecodeError, match=problem):
        restored(host, empty, change(small))


@pytest.mark.parametrize("seed", range(12))
def test_a_stream_that_is_cut(host: SimulatedHost, small: bytes, empty: int, seed: int) -> None:
    cut = random.Random(seed).randrange(len(small))
    with pytest.raises(DecodeError, match="the stream ends") as raised:
        restored(host, empty, small[:cut])
    assert raised.value.offset == cut


@pytest.mark.parametrize("seed", range(40))
def test_damage_is_told_and_nothing_worse(
    host: SimulatedHost, small: bytes, empty: int, seed: int
) -> None:
    chance = random.Random(seed)
    stream = bytearray(small)
    frames = [HEADERS - 16, *(offset for offset, _, _ in records(small))]
    for _ in range(chance.randrange(1, 4)):
        place = chance.choice(frames) + chance.randrange(24)
        stream[min(place, len(stream) - 1)] = chance.randrange(256)
    try:
        restored(host, empty, bytes(stream))
    except (DecodeError, OSError):
        pass


def test_pages_of_every_type(host: SimulatedHost, small: bytes, empty: int) -> None:
    rows = records(small)
    first = next(n for n, row in enumerate(rows) if row[1] == RecordType.PAGE_DATA)
    rows = [row for row in rows if row[1] != RecordType.PAGE_DATA]
    body = pages((1, 0), (2, 0xE), (3, 0xF), (4, 0xD), (5, 0x1)) + b"\x11" * PAGE + b"\x55" * PAGE
    rows.insert(first, (0, RecordType.PAGE_DATA, body))
    restored(host, empty, joined(small, rows))
    with open_on_host(host.directory, empty) as domain:
        there = populated(domain)
        assert set(there.tolist()) >= {1, 2, 5}
        assert not set(there.tolist()) & {3, 4}
        assert read_pages(domain, pfns_of([1, 2, 5])) == (
            b"\x11" * PAGE + bytes(PAGE) + b"\x55" * PAGE
        )


def test_a_domain_that_is_too_small(host: SimulatedHost, small: bytes) -> None:
    domid = new_domain(host, "tiny", 1 << 20)
    with pytest.raises(OSError, match="limit") as raised:
        restored(host, domid, small)
    assert raised.value.errno == errno.ENOMEM


def test_verification_tells_what_differs(host: SimulatedHost, empty: int) -> None:
    domid = host.create_guest("source", MEMORY, "random", type="pvh")
    stream = stream_of(host, domid, debug=True)
    controller = Controller({"static_data_done": 0})
    restored(host, empty, stream, controller)
    assert "verify pfn" not in controller.logged()
    rows = records(stream)
    verify = next(n for n, row in enumerate(rows) if row[1] == RecordType.VERIFY)
    _, number, body = rows[verify + 1]
    rows[verify + 1] = (0, number, body[:-1] + bytes([body[-1] ^ 1]))
    other = new_domain(host, "other", MEMORY)
    controller = Controller({"static_data_done": 0})
    restored(host, other, joined(stream, rows), controller)
    assert "verify failed for 1 pages in all" in controller.logged()


@pytest.mark.parametrize(
    ("answers", "job", "problem", "code"),
    [
        ({"static_data_done": 1}, restore_job(), "static_data_done", errno.EIO),
        ({}, restore_job(stream_type=StreamType.COLO), "COLO", errno.EOPNOTSUPP),
    ],
)
def test_refusals(
    host: SimulatedHost,
    small: bytes,
    empty: int,
    answers: dict[str, int],
    job: Job,
    problem: str,
    code: int,
) -> None:
    with pytest.raises(OSError, match=problem) as raised:
        restored(host, empty, small, Controller(answers), job)
    assert raised.value.errno == code


@pytest.mark.parametrize("name", ["pvh-live-xen-4.17", "hvm-live-xen-4.17"])
def test_a_guest_of_another_cpu_is_refused_before_its_first_page(tmp_path: Path, name: str) -> None:
    create_host(tmp_path / "older", lacks=["xsave", "pku", "cet-ss"])
    older = SimulatedHost(tmp_path / "older")
    domid = new_domain(older, "guest", 160 << 20)
    try:
        with pytest.raises(OSError, match=r"offered: xsave, pku\. ") as raised:
            restored(older, domid, libxc_part(name))
        assert raised.value.errno == errno.ENOTSUP
        with open_on_host(older.directory, domid) as domain:
            assert domain.getinfo().nr_pages == 0
        ignoring = restore_job(
            missing_cpu_features=MissingCpuFeatures.IGNORE, store_evtchn=3, console_evtchn=4
        )
        restored(older, domid, libxc_part(name), None, ignoring)
    finally:
        older.destroy(domid)


def test_nobody_sends(host: SimulatedHost, empty: int) -> None:
    near, far = socket.socketpair()
    with near, far, pytest.raises(OSError, match="stands still") as raised:
        restore(host, empty, near.fileno(), stall_limit=0.2)
    assert raised.value.errno == errno.ETIMEDOUT


def test_a_stream_in_small_pieces(host: SimulatedHost, small: bytes, empty: int) -> None:
    near, far = socket.socketpair()

    def send() -> None:
        chance = random.Random(1)
        at = 0
        while at < len(small):
            size = chance.choice([1, 3, 500, 4095, 70_000])
            far.sendall(small[at : at + size])
            at += size

    thread = threading.Thread(target=send)
    with near, far:
        thread.start()
        restore(host, empty, near.fileno())
        thread.join()
    assert records(stream_of_standing(host, empty)) == records(small)


def libxc_part(name: str) -> bytes:
    """The libxc stream in a cut of a real xl stream."""
    cut = read_cut(name)
    start = cut.index(b"\xff" * 8 + b"XENF")
    rows = records(cut[start:])
    return cut[start : start + rows[-1][0] + 8]


@pytest.mark.parametrize("name", ["pvh-live-xen-4.17", "pvh-save-xen-4.17", "hvm-live-xen-4.17"])
def test_a_real_stream_and_back(host: SimulatedHost, name: str) -> None:
    stream = libxc_part(name)
    first = new_domain(host, "first", 160 << 20)
    restored(host, first, stream)
    again = stream_of_standing(host, first)
    state = {RecordType.HVM_CONTEXT, RecordType.X86_CPUID_POLICY, RecordType.X86_MSR_POLICY}
    assert [row[1:] for row in records(again) if row[1] in state] == [
        row[1:] for row in records(stream) if row[1] in state
    ]
    second = new_domain(host, "second", 160 << 20)
    restored(host, second, again)
    with open_on_host(host.directory, first) as one, open_on_host(host.directory, second) as other:
        assert populated(one) == populated(other)
        assert read_pages(one, populated(one)) == read_pages(other, populated(other))
        assert hvm_params(one) == hvm_params(other)
        assert one.tsc_info() == other.tsc_info()
    assert records(stream_of_standing(host, second)) == records(again)


def test_a_real_pv_stream_is_refused(host: SimulatedHost, empty: int) -> None:
    with pytest.raises(OSError, match="PV domain") as raised:
        restored(host, empty, libxc_part("pv-save-xen-4.17"))
    assert raised.value.errno == errno.EOPNOTSUPP


def test_every_stage_can_be_reached_and_left() -> None:
    reached = {Stage.STATIC_DATA}
    while more := {then for (stage, _), then in NEXT.items() if stage in reached} - reached:
        reached |= more
    assert reached == set(Stage)
    assert {stage for stage, _ in NEXT} == set(Stage) - {Stage.ENDED}


def test_in_version_2_the_first_other_record_ends_the_static_data() -> None:
    order = RecordOrder(2)
    assert order.record(RecordType.PAGE_DATA, 40)
    assert not order.record(RecordType.PAGE_DATA, 80)
    with pytest.raises(DecodeError, match="may not come here, in the static data"):
        RecordOrder(3).record(RecordType.PAGE_DATA, 40)


def test_a_guest_runs_on_from_a_file(host_factory: HostFactory) -> None:
    source, target = host_factory("source"), host_factory("target")
    domid = source.create_guest("guest", MEMORY, "random", type="pvh")
    stream = stream_of(source, domid)
    new = target.create(source.config(domid), "guest")
    restored(target, new, stream)
    target.unpause(new)
    report = target.verify(new, 30)
    assert report.state is GuestState.RUNNING
    assert report.memory_ok
