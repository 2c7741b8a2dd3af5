from __future__ import annotations

import socket
import threading

import pytest

from tests.helper.engine.running import Controller, job_on, save_job
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine import postcopy_save
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.postcopy_pages import POSTCOPY_BATCH
from xen_save_helper.helper.engine.postcopy_save import PostcopySender
from xen_save_helper.helper.engine.save_phases import Outcome
from xen_save_helper.helper.engine.stream_io import StreamOutput
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE, Bitmap
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.job import StreamCounts
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.records import decode_record_header, encode_record
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

LIMIT = 5.0
PAGES = 1024


class SaysItHasAll(Controller):
    """A controller whose receiver has all pages as soon as the last one is sent."""

    def __init__(self, receiver: socket.socket) -> None:
        super().__init__({})
        self._receiver = receiver

    def tell(self, name: str, **fields: int | str) -> None:
        super().tell(name, **fields)
        if name == "progress" and fields["done"] == fields["total"]:
            self._receiver.sendall(encode_record(RecordType.POSTCOPY_COMPLETE, b""))


def test_the_drain_is_entered_also_where_the_receiver_has_all_with_the_last_page(
    host: SimulatedHost,
) -> None:
    domid = host.create_guest("g", 1 << 20, "idle")
    domain = open_on_host(host.directory, domid)
    ours, theirs = socket.socketpair()
    with ours, theirs, Abort(signals=frozenset()) as abort:
        reporter = Reporter(SaysItHasAll(theirs), abort, Trace("helper"))
        out = StreamOutput(ours.fileno(), abort)
        job = job_on(save_job(stall_limit=LIMIT), domid, ours.fileno(), ours.fileno())
        sender = PostcopySender(domain, out, Environment(job, reporter, abort, StreamCounts()))
        dirty = Bitmap(domain.maximum_gpfn() + 1)
        dirty[7] = 1
        sender.send_pfns(domain, dirty, dirty)
        assert sender.send_pages() is Outcome.DONE
        assert sender.drain() is Outcome.COMPLETE
    domain.close()


def lengths_of_records(receiver: socket.socket, pages: int) -> list[int]:
    """How many pages each record has, until `pages` have come."""
    found: list[int] = []
    with receiver.makefile("rb") as stream:
        while sum(found) < pages:
            _number, length = decode_record_header(stream.read(8), "record", 0)
            count = (length - 8) // (8 + PAGE_SIZE)
            stream.read(length)
            found.append(count)
    receiver.sendall(encode_record(record_number(RecordType.POSTCOPY_COMPLETE, VERSION), b""))
    return found


def sent(host: SimulatedHost, bandwidth: int) -> list[int]:
    """Send a guest whose pages are all left; returns how many pages each record had."""
    domid = host.create_guest("g", PAGES * PAGE_SIZE, "idle")
    domain = open_on_host(host.directory, domid)
    ours, theirs = socket.socketpair()
    lengths: list[int] = []
    receiver = threading.Thread(target=lambda: lengths.extend(lengths_of_records(theirs, PAGES)))
    with ours, theirs, Abort(signals=frozenset()) as abort:
        reporter = Reporter(Controller({}), abort, Trace("helper"))
        out = StreamOutput(ours.fileno(), abort, bandwidth)
        job = job_on(save_job(stall_limit=LIMIT), domid, ours.fileno(), ours.fileno())
        sender = PostcopySender(domain, out, Environment(job, reporter, abort, StreamCounts()))
        sender.take_over(Bitmap(b"\1" * PAGES))
        receiver.start()
        assert sender.send_pages() is Outcome.DONE
        assert sender.drain() is Outcome.COMPLETE
        receiver.join()
    domain.close()
    return lengths


@pytest.mark.parametrize(
    ("bandwidth", "batch_seconds", "largest"),
    [(0, LIMIT, 4 * POSTCOPY_BATCH), (0, 0.0, POSTCOPY_BATCH), (1 << 30, LIMIT, POSTCOPY_BATCH)],
    ids=["fast", "slow", "paced"],
)
def test_records_are_large_if_the_stream_takes_them_at_once_and_has_no_pace(
    host: SimulatedHost,
    monkeypatch: pytest.MonkeyPatch,
    bandwidth: int,
    batch_seconds: float,
    largest: int,
) -> None:
    monkeypatch.setattr(postcopy_save, "_BATCH_SECONDS", batch_seconds)
    lengths = sent(host, bandwidth)
    assert sum(lengths) == PAGES
    assert lengths[0] == POSTCOPY_BATCH
    assert max(lengths) == largest
