r"""The process that keeps a guest's last pages at the source until they are at the destination.

    python -m xen_save_helper.helper.postcopy_link.page_server \
        LINE_FD DOMID PORT BANDWIDTH HYPERVISOR ADDRESS CONTROL EVENTS

The saving helper starts it (`source`), tells it what to keep, and ends. Then `xl` destroys the
domain, whose pages stay as long as they are mapped here. It does little, since what it loses is
lost: it serves pages, and ends when the last one is there, or when the domain runs here again,
because the migration has failed.

On the line, a socket, go `packets`: from here `{"offer": ...}`, `{"ready": refusal}` once the
other side has connected, or `{"error": reason}`. To here go `{"hear": true}`, which is answered by
the other side's next word, another `{"ready": refusal}`; `{"map": p2m_size}` and
`{"keep": p2m_size}` with a bitmap's memfd, answered by `{"mapped": pages}` and `{"kept": pages}`;
and `{"go": true}` when the save is done, answered by `{"serves": name}`, that of its control
socket.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
import socket
import sys
import threading
import time
from contextlib import closing, suppress
from typing import Any, Final, NamedTuple, NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.channels.silent_channel import SilentChannel
from xen_save_helper.helper.engine.environment import Environment
from xen_save_helper.helper.engine.postcopy_save import PostcopySender
from xen_save_helper.helper.engine.stream_io import StreamInput, StreamOutput
from xen_save_helper.helper.hypervisors import open_domain
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.helper.job import Job, PostcopyProgress, StreamCounts
from xen_save_helper.helper.postcopy_link import record
from xen_save_helper.helper.postcopy_link.curve import TunnelServer, new_keys
from xen_save_helper.helper.postcopy_link.kept_pages import KeptPages
from xen_save_helper.helper.postcopy_link.watched import Watched, Work
from xen_save_helper.helper.seams import Seams
from xen_save_helper.helper.trace_file import open_trace
from xen_save_helper.helper.watchdog import die_with_parent
from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.causes import words_of
from xen_save_helper.ipc_schema.channel import packets
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSION, RecordType, record_number
from xen_save_helper.ipc_schema.streams.pfns import Pfns
from xen_save_helper.ipc_schema.streams.postcopy_offer import PostcopyOffer
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.ipc_schema.trace import Trace

EXIT_NOT_WANTED: Final = 0
EXIT_RUNS_HERE: Final = 3
_LOOK: Final = 1.0
_DECISION_SECONDS: Final = 30.0
"""How soon after the receiver's end `xl` decides where the guest runs."""
_MCL_ALL: Final = 1 | 2 | 4
"""MCL_CURRENT, MCL_FUTURE and MCL_ONFAULT: what is mapped is not read in for that."""
_NEVER_KILLED: Final = "-1000"
"""For oom_score_adj."""


class Options(NamedTuple):
    """The domain, where to listen, at most how many bytes to send a second (0: any), and the
    directory of the control socket."""

    domid: int
    port: int
    bandwidth: int
    hypervisor: str
    address: str
    control: str


def main(line: socket.socket, options: Options, trace: Trace, seams: Seams) -> int:
    """Returns the exit status. Raises OSError, ValueError if pages are lost."""
    server_keys, client_keys = new_keys(), new_keys()
    tunnel = TunnelServer(options.address, options.port, server_keys, client_keys.public)
    done = False
    try:
        keys = (server_keys.public, client_keys.public, client_keys.secret)
        offer = PostcopyOffer(options.address, tunnel.port, *(key.decode() for key in keys))
        seams.step("offers")
        _say(line, {"offer": offer._asdict()})
        kept = _prepare(line, tunnel, options, trace, seams)
        if kept is None:
            return EXIT_NOT_WANTED
        with closing(kept):
            try:
                status = _serve(line, kept, tunnel, options, trace, seams)
            except (OSError, ValueError) as error:
                trace.event("pages_lost", error=str(error))
                raise
        done = status == 0
        return status
    finally:
        if done:
            tunnel.close()
        else:
            tunnel.give_up()


def _prepare(
    line: socket.socket, tunnel: TunnelServer, options: Options, trace: Trace, seams: Seams
) -> KeptPages | None:
    """Until the save is done; None if it does without."""
    poll = select.poll()
    for fd in (line.fileno(), tunnel.fileno()):
        poll.register(fd, select.POLLIN)
    said = b""
    kept: KeptPages | None = None
    while True:
        for fd, _events in poll.poll():
            if fd == tunnel.fileno():
                # What follows the line may be a pager's first word.
                byte = os.read(fd, 1)
                said += byte
                if byte in {b"\n", b""}:
                    poll.unregister(fd)
                    refusal = said[:-1] if byte else said or b"the receiver has given up"
                    _say(line, {"ready": refusal.decode(errors="replace")})
                continue
            data, fds, _flags, _address = socket.recv_fds(line, packets.MOST, 1)
            packet = packets.decode(data)
            if "hear" in packet:
                said = b""
                poll.register(tunnel.fileno(), select.POLLIN)
            elif "go" in packet:
                die_with_parent(0)
                return kept
            elif "map" not in packet and "keep" not in packet:
                if kept is not None:
                    kept.close()
                return None
            else:
                try:
                    if kept is None:
                        _do_not_die(trace)
                        kept = KeptPages(open_domain(options.hypervisor, options.domid))
                    _say(line, _of_pages(kept, packet, fds[0], seams))
                except OSError as error:
                    _say(line, {"error": error.strerror or str(error)})


def _of_pages(kept: KeptPages, packet: dict[str, Any], memfd: int, seams: Seams) -> dict[str, Any]:
    """Do what is asked for pages; returns the answer. Raises OSError."""
    ((what, size),) = packet.items()
    with open(memfd, "rb") as file:
        bitmap = Bitmap(file.read(size))
    if what == "map":
        kept.map(bitmap)
        return {"mapped": bitmap.count(1)}
    seams.step("keeps")
    kept.keep(bitmap)
    return {"kept": kept.pages}


def _serve(
    line: socket.socket,
    kept: KeptPages,
    tunnel: TunnelServer,
    options: Options,
    trace: Trace,
    seams: Seams,
) -> int:
    """Until the other side has all, or wants none; returns the exit status."""
    over = threading.Event()
    with Abort(signals=frozenset({signal.SIGTERM})) as abort:
        watch = threading.Thread(target=_watch, args=(kept, abort, over))
        watch.start()
        sending = _Sending(kept, tunnel, options, abort, trace, seams)
        work = Work(
            Role.PAGE_SERVER, options.hypervisor, options.domid, sending.progress, tunnel, abort
        )
        watched = Watched(work, options.control, trace)
        _say(line, {"serves": watched.name})
        ended: dict[str, str] = {}
        trace.event("pages_kept", domid=options.domid, pages=kept.pages)
        seams.step("serves")
        try:
            sending.send_all()
        except (OSError, ValueError) as error:
            reason = words_of(error)
            if not kept.runs_here() and (abort.requested or not _stays(kept)):
                ended["why_not"] = reason
                raise
            ended["told"] = f"its pages are not wanted: {reason}"
            trace.event("pages_not_wanted", domid=options.domid, reason=reason)
            return EXIT_RUNS_HERE
        finally:
            over.set()
            watch.join()
            watched.close(**ended)
    trace.event("pages_gone", domid=options.domid)
    return 0


class _Sending:
    """To a pager, and to another one that takes its place."""

    def __init__(
        self,
        kept: KeptPages,
        tunnel: TunnelServer,
        options: Options,
        abort: Abort,
        trace: Trace,
        seams: Seams,
    ) -> None:
        self._kept = kept
        self._tunnel = tunnel
        self._options = options
        self._abort = abort
        self._trace = trace
        self._seams = seams
        self._statistics = StreamCounts()
        self._begin(Bitmap(kept.bitmap))

    def progress(self) -> PostcopyProgress:
        """From any thread."""
        return self._sender.progress()

    def send_all(self) -> None:
        """Raises OSError, ValueError."""
        while True:
            try:
                self._sender.send_pages()
                self._sender.drain()
                self._seams.step("drained")
                self._out.write([encode_record(record_number(RecordType.END, VERSION), b"")])
                return
            except (OSError, ValueError):
                if self._abort.requested or not self._tunnel.next_session():
                    raise
            self._begin(self._kept.among(self._missing()))

    def _begin(self, bitmap: Bitmap) -> None:
        fd, options = self._tunnel.fileno(), self._options
        # A record may be larger than what the tunnel takes: an abort could not end such a write.
        os.set_blocking(fd, False)
        reporter = Reporter(SilentChannel(), self._abort, self._trace)
        job = Job(HelperRequest(Operation.SAVE, options.domid, fd, fd))
        self._out = StreamOutput(fd, self._abort, options.bandwidth)
        environment = Environment(job, reporter, self._abort, self._statistics)
        self._sender = PostcopySender(self, self._out, environment)
        self._sender.take_over(bitmap)

    def foreign_map(self, pfns: Pfns, *, writable: bool = False) -> list[memoryview]:
        """As `interface.Domain`'s, of pages that are about to be sent."""
        self._seams.step("sends")
        return self._kept.foreign_map(pfns, writable=writable)

    def foreign_unmap(self, views: list[memoryview]) -> None:
        self._kept.foreign_unmap(views)

    def _missing(self) -> Bitmap:
        """What another pager says it lacks, as its first word."""
        missing = record.read_missing(StreamInput(self._tunnel.fileno(), self._abort))
        self._trace.event("pager_again", domid=self._options.domid, missing=missing.count(1))
        return missing


def _watch(kept: KeptPages, abort: Abort, over: threading.Event) -> None:
    """End it when the domain runs here again: the migration has failed."""
    while not over.wait(_LOOK):
        if kept.runs_here():
            abort.request(errno.ECANCELED, "the guest runs here again")
            return


def _stays(kept: KeptPages) -> bool:
    """Whether the domain has its pages still, now that the other side has given up: `xl` may be
    about to destroy it, or to resume it."""
    end = time.monotonic() + _DECISION_SECONDS
    while not kept.is_gone() and not kept.runs_here() and time.monotonic() < end:
        time.sleep(_LOOK)
    return not kept.is_gone()


def _do_not_die(trace: Trace) -> None:
    """What can be done about it is done as far as it goes: no memory of this process is ever
    written out, and others are killed first for want of memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_ALL):
        trace.event("not_spared", what="mlockall", error=os.strerror(ctypes.get_errno()))
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(_NEVER_KILLED)
    except OSError as error:
        trace.event("not_spared", what="oom_score_adj", error=words_of(error))


def _say(line: socket.socket, packet: dict[str, Any]) -> None:
    with suppress(OSError):  # nobody waits for it any more, as will be seen
        packets.send(line, packet)


def _run(arguments: list[str]) -> NoReturn:
    # The helper has its signals blocked, for a thread of its own.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Until it serves it is a part of the save, even if it is stopped.
    die_with_parent(signal.SIGKILL)
    line = socket.socket(fileno=int(arguments[0]))
    line.set_inheritable(False)
    trace = open_trace("".join(arguments[7:]), "page server", lambda _text: None)
    try:
        domid, port, bandwidth = map(int, arguments[1:4])
        options = Options(domid, port, bandwidth, *arguments[4:7])
        status = main(line, options, trace, _seams(trace))
    except (OSError, ValueError) as error:
        _say(line, {"error": str(error)})
        status = 1
    os._exit(status)


def _seams(trace: Trace) -> Seams:
    """Those of the plan that whoever has started us carries out. Raises ValueError."""
    given = os.environ.get(variables.FAULTS)
    if not given:
        return Seams()
    from xen_save_helper.helper.faults.seams import of_page_server

    return of_page_server(given, trace)


if __name__ == "__main__":
    _run(sys.argv[1:])
