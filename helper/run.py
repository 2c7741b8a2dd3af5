"""One save or restore, from the request to `complete` (libxl_save_helper.c's main).

The engine is imported here and not before: that takes time, and the helper says hello first.
"""

from __future__ import annotations

import errno
import os
import sys

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import CONTEXT, Channel, ChannelError, log_fields
from xen_save_helper.helper.engine_choice import choose_engine
from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.helper.job import (
    EXIT_CONTROLLER_GONE,
    EXIT_DONE,
    EXIT_FAILED,
    Job,
    RestoreResults,
    StreamCounts,
)
from xen_save_helper.helper.seams import Seams
from xen_save_helper.ipc_schema.causes import Cause, Why, errno_of, why, words_of
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Operation, XCFlags, XentoollogLevel
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.hints import TYPE_CHECKING
from xen_save_helper.ipc_schema.named_tuple import NamedTuple
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.hypervisors.interface import Domain
    from xen_save_helper.helper.postcopy_link.destination import Pager
    from xen_save_helper.helper.postcopy_link.source import PageServer


class _Outcome(NamedTuple):
    retval: int = 0
    errnoval: int = 0
    results: RestoreResults | None = None
    statistics: StreamCounts | None = None
    internal_error: bool = False


def run(
    job: Job,
    channel: Channel,
    abort: Abort,
    trace: Trace,
    seams: Seams,
    remarks: list[str],
) -> int:
    """Do the job and tell the controller how it ended; returns the exit status. `remarks` are
    warnings for the controller's log, sent now and before the end."""
    try:
        _log(channel, XentoollogLevel.DEBUG, f"starting {job.request.operation.value}")
        _say(channel, remarks)
        outcome = _operate(job, channel, abort, trace, seams)
        _say(channel, remarks)
        _tell(job, outcome, channel, trace)
    except ChannelError as over:
        return report_channel_error(over, trace)
    return EXIT_FAILED if outcome.internal_error else EXIT_DONE


def _say(channel: Channel, remarks: list[str]) -> None:
    while remarks:
        _log(channel, XentoollogLevel.WARN, remarks.pop(0))


def report_channel_error(over: ChannelError, trace: Trace) -> int:
    """Tell why the conversation is over; returns the exit status."""
    what = Why(Cause.CHANNEL, over.errno or 0)
    trace.event("failure", what="channel", error=over.strerror, **what._asdict())
    print(f"{CONTEXT}: {over.strerror}", file=sys.stderr)
    return EXIT_CONTROLLER_GONE if over.errno == errno.EPIPE else EXIT_FAILED


def _operate(job: Job, channel: Channel, abort: Abort, trace: Trace, seams: Seams) -> _Outcome:
    request, counted = job.request, StreamCounts()
    engine: Engine | None = None
    try:
        _keep("io_fd", request.io_fd)
        if request.back_fd >= 0:
            _keep("back_fd", request.back_fd)
        with seams.streams(job, abort):
            engine, reason, domain = choose_engine(request)
            trace.event("engine", engine=engine.value, hypervisor=request.hypervisor)
            if job.board is not None:
                job.board.engine = engine
            if reason:
                _log(channel, XentoollogLevel.INFO, f"libxenguest works on {reason}")
            return _with_engine(engine, domain, job, channel, abort, trace, seams, counted)
    except (OSError, DecodeError, MemoryError) as bad:
        errnoval, text = errno_of(bad), words_of(bad)
        if abort.requested:
            # The abort caused everything that failed after it, above all the stream's EBADF.
            trace.event("failure", what="aborted", error=text, **why(bad)._asdict())
            errnoval, text = abort.errnoval, abort.reason
        if job.steered is not None:
            job.steered.ended = text
        _log(channel, XentoollogLevel.ERROR, text, errnoval)
        counts = request.operation is Operation.SAVE and engine is Engine.OWN
        return _Outcome(retval=-1, errnoval=errnoval, statistics=counted if counts else None)
    except Exception as bug:
        import traceback

        traceback.print_exc()
        text = f"internal error: {type(bug).__name__}: {bug}"
        _log(channel, XentoollogLevel.CRITICAL, text, errno.EIO)
        return _Outcome(retval=-1, errnoval=errno.EIO, internal_error=True)


def _keep(name: str, fd: int) -> None:
    """Stop an inherited descriptor from being inherited further. Raises OSError that names it."""
    try:
        os.set_inheritable(fd, False)
    except OSError as bad:
        raise OSError(bad.errno, f"{name} {fd}: {bad.strerror}") from None


def _with_engine(
    engine: Engine,
    domain: Domain | None,
    job: Job,
    channel: Channel,
    abort: Abort,
    trace: Trace,
    seams: Seams,
    counted: StreamCounts,
) -> _Outcome:
    """`domain` is open if the choice of the engine needed it; it is closed in the end. `counted` is
    kept up to date by a save of our engine."""
    request = job.request
    if request.sparse and engine is Engine.LIBXENGUEST:
        _log(channel, XentoollogLevel.WARN, "libxenguest does not leave out pages of zeros")
    if request.hypervisor == XEN and request.operation is Operation.RESTORE:
        from xen_save_helper.helper.hypervisors.xen import restored_model

        if doubt := restored_model.check(request.domid, job.device_model):
            _log(channel, XentoollogLevel.WARN, doubt)
    if engine is Engine.LIBXENGUEST:
        return _with_libxenguest(job, channel, abort, trace)

    from xen_save_helper.helper.channels.reporter import Reporter
    from xen_save_helper.helper.engine.environment import Environment
    from xen_save_helper.helper.hypervisors import open_domain

    page_server, pager = _postcopy_link(job, channel, abort, trace, seams)
    reporter = Reporter(channel, abort, trace, board=job.board)
    environment = Environment(job, reporter, abort, counted, page_server, pager)
    domain = domain or open_domain(request.hypervisor, request.domid)
    try:
        if request.operation is Operation.SAVE:
            from xen_save_helper.helper.engine.save import domain_save

            domain_save(domain, environment)
            return _Outcome(statistics=counted)
        from xen_save_helper.helper.engine.restore import domain_restore

        results = domain_restore(domain, environment)
        return _Outcome(results=results, statistics=results.statistics)
    finally:
        domain.close()
        for link in (page_server, pager):
            if link is not None:
                link.close()


def _postcopy_link(
    job: Job, channel: Channel, abort: Abort, trace: Trace, seams: Seams
) -> tuple[PageServer | None, Pager | None]:
    """What a save or a restore has that may leave the last pages to a link."""
    request = job.request
    if request.operation is Operation.RESTORE:
        if job.parent < 0:
            return None, None
        from xen_save_helper.helper.postcopy_link.destination import Pager

        return None, Pager(job, channel, abort, trace, seams.step)
    if job.listen is None or not request.xcflags & XCFlags.LIVE:
        return None, None
    from xen_save_helper.helper.postcopy_link.source import PageServer

    try:
        return PageServer(job), None
    except OSError as error:
        _log(channel, XentoollogLevel.WARN, f"no postcopy: its page server: {error}")
        return None, None


def _with_libxenguest(job: Job, channel: Channel, abort: Abort, trace: Trace) -> _Outcome:
    if job.request.operation is Operation.SAVE:
        from xen_save_helper.helper.libxenguest import save

        return _Outcome(statistics=save.domain_save(job, channel, abort, trace))
    from xen_save_helper.helper.libxenguest import restore

    results = restore.domain_restore(job, channel, abort, trace)
    return _Outcome(results=results, statistics=results.statistics)


def _tell(job: Job, outcome: _Outcome, channel: Channel, trace: Trace) -> None:
    if outcome.statistics is not None and channel.provides("statistics"):
        channel.tell("statistics", **outcome.statistics.fields())
    if job.request.operation is Operation.RESTORE and channel.provides("restore_results"):
        results = outcome.results or RestoreResults()
        channel.tell(
            "restore_results", store_gfn=results.store_gfn, console_gfn=results.console_gfn
        )
    trace.event("complete", retval=outcome.retval, errnoval=outcome.errnoval)
    _log(channel, XentoollogLevel.DEBUG, f"complete r={outcome.retval}", outcome.errnoval)
    channel.call("complete", retval=outcome.retval, errnoval=outcome.errnoval)


def _log(channel: Channel, level: XentoollogLevel, text: str, errnoval: int = 0) -> None:
    channel.tell("log", **log_fields(level, text, errnoval))
