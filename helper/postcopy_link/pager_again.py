r"""A pager that takes the place of one that has died.

    python -m xen_save_helper.helper.postcopy_link.pager_again LINE_FD RECORD CONTROL EVENTS

It goes by what the other one has put on record (`record`), and by what the hypervisor says of the
pages. On the line, a socket, goes one of `packets`: `{"serves": name}` once it works, or
`{"error": reason}`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.channels.silent_channel import SilentChannel
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.page_stream import set_bits
from xen_save_helper.helper.engine.postcopy_restore import PostcopyReceiver
from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors import open_domain
from xen_save_helper.helper.hypervisors.interface import Bitmap, Paging
from xen_save_helper.helper.job import Job, StreamCounts
from xen_save_helper.helper.postcopy_link import record
from xen_save_helper.helper.postcopy_link.curve import Keys, TunnelClient
from xen_save_helper.helper.postcopy_link.watched import Watched, Work
from xen_save_helper.helper.trace_file import open_trace
from xen_save_helper.ipc_schema.causes import words_of
from xen_save_helper.ipc_schema.channel import packets
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION
from xen_save_helper.ipc_schema.trace import Trace


def main(line: socket.socket, path: Path, control: str, trace: Trace) -> None:
    """Until all pages are there. Raises OSError, ValueError."""
    found, listed = record.read(path)
    keys = Keys(found.client_key.encode(), found.client_secret.encode())
    with (
        Abort(signals=frozenset({signal.SIGTERM})) as abort,
        closing(open_domain(found.hypervisor, found.domid)) as domain,
    ):
        paging = domain.mem_paging_take_over()
        tunnel = TunnelClient(found.address, found.port, keys, found.server_key.encode())
        job = Job(HelperRequest(Operation.RESTORE, found.domid, tunnel.fileno(), tunnel.fileno()))
        reporter = Reporter(SilentChannel(), abort, trace)
        environment = Environment(job, reporter, abort, StreamCounts())
        stream = StreamInput(tunnel.fileno(), abort)
        with closing(PostcopyReceiver(domain, stream, VERSION, environment, paging)) as receiver:
            missing = _among(listed, paging)
            trace.event("pager_again", domid=found.domid, missing=missing.count(1))
            kept = _Kept(path)
            work = Work(
                Role.PAGER,
                found.hypervisor,
                found.domid,
                receiver.progress,
                tunnel,
                abort,
                kept.moved,
            )
            watched = Watched(work, control, trace)
            kept.rename(control, watched.name)
            record.say_missing(tunnel.fileno(), missing)
            receiver.take_over(missing)
            with suppress(OSError):  # nobody waits for it
                packets.send(line, {"serves": watched.name})
            line.close()
            why_not = ""
            try:
                receiver.receive()
            except (OSError, ValueError) as error:
                why_not = words_of(error) if receiver.progress().left else ""
                tunnel.give_up()
                raise
            finally:
                watched.close(why_not)
                record.remove(kept.path)
        tunnel.close()


def _among(listed: Bitmap, paging: Paging) -> Bitmap:
    """The listed pages that have not come."""
    pfns, _ = set_bits(listed, 0, listed.count(1))
    missing = Bitmap(len(listed))
    for pfn in paging.still_evicted(pfns):
        missing[pfn] = 1
    return missing


class _Kept:
    """The record, which becomes this pager's own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rename(self, control: str, name: str) -> None:
        if name:
            ours = record.path_of(control, name)
            self.path.rename(ours)
            self.path = ours

    def moved(self, address: str, port: int) -> None:
        record.moved(self.path, address, port)


def _run(arguments: list[str]) -> NoReturn:
    line = socket.socket(fileno=int(arguments[0]))
    line.set_inheritable(False)
    path, control, events = arguments[1:4]
    trace = open_trace(events, "helper", lambda _text: None)
    try:
        main(line, Path(path), control, trace)
        status = 0
    except Exception as error:
        with suppress(OSError):
            packets.send(line, {"error": words_of(error)})
        trace.event("failure", what="pager", error=words_of(error))
        status = 1
    os._exit(status)


if __name__ == "__main__":
    _run(sys.argv[1:])
