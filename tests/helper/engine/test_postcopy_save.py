from __future__ import annotations

import socket

from tests.helper.engine.running import Controller, job_on, save_job
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.postcopy_save import PostcopySender
from xen_save_helper.helper.engine.save_phases import Outcome
from xen_save_helper.helper.engine.stream_io import StreamOutput
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.hypervisors.simulated.domain import open_on_host
from xen_save_helper.helper.job import StreamCounts
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.hosts.simulated.host import SimulatedHost

LIMIT = 5.0


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
        sender.send_pfns(domain, dirty)
        assert sender.send_pages() is Outcome.DONE
        assert sender.drain() is Outcome.COMPLETE
    domain.close()
