"""The command `xen-save-helper`: the process that runs one save or one restore.

Nothing here may cost start-up time that `hello` does not need: the two channels and the engine are
imported once it is known which of them is wanted.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable

from xen_save_helper.helper.abort import SAVE_SIGNALS, Abort
from xen_save_helper.helper.board import take_board
from xen_save_helper.helper.channels.channel import CONTEXT, ChannelError
from xen_save_helper.helper.command_line import USAGE, Options, UsageError, here, parse
from xen_save_helper.helper.engine_choice import what_works_on_what
from xen_save_helper.helper.job import EXIT_DONE, EXIT_FAILED, Job
from xen_save_helper.helper.limits import (
    answer_limit_of,
    limits_that_do_not_hold,
    precopy_limits_of,
    stall_limit_of,
)
from xen_save_helper.helper.own_memory import keep_small
from xen_save_helper.helper.run import report_channel_error, run
from xen_save_helper.helper.seams import Seams
from xen_save_helper.helper.settings import (
    HAND_OVER,
    OUTLIVE,
    Settings,
    read_settings,
)
from xen_save_helper.helper.standard_streams import lost, standard_streams
from xen_save_helper.helper.trace_file import open_trace
from xen_save_helper.helper.watchdog import Watchdog, die_with_parent, limit_of, wake_when_orphaned
from xen_save_helper.ipc_schema.board import Board
from xen_save_helper.ipc_schema.causes import Cause
from xen_save_helper.ipc_schema.channel.helper_request import (
    DEFAULT_ENGINE,
    Engine,
    request_of_start,
)
from xen_save_helper.ipc_schema.channel.listen import parse_listen
from xen_save_helper.ipc_schema.channel.messages import (
    Dialect,
    Operation,
    StreamType,
    XentoollogLevel,
    callbacks_of,
)
from xen_save_helper.ipc_schema.hints import Any, NoReturn
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.ipc_schema.version import version


def main() -> int:
    """Run as a process; returns its exit status."""
    with standard_streams():
        return _main()


def _main() -> int:
    # numpy's linear algebra library, which nothing here calls, would start a thread for each
    # processor, and they spin: they would take time that the other end of the stream needs.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(f"{USAGE}\n{here()}")
        return _printed()
    if arguments == ["--version"]:
        engine = read_settings(os.environ).settings.engine or DEFAULT_ENGINE
        print(f"{CONTEXT} {version()}; {here()}; {what_works_on_what(engine)}")
        return _printed()
    if arguments == ["--check"]:
        from xen_save_helper.helper.check import check

        return check(os.environ) or _printed()
    try:
        options = parse(arguments)
        settings, _given, problems = read_settings(os.environ)
        remarks = list(problems)
        wake_when_orphaned()
        keep_small()
        trace = open_trace(options.events or settings.events, "helper", remarks.append)
        watchdog = _watchdog(options, settings, trace)
        seams = _seams(options, settings, trace)
        seams.step("start")
        serve = _serve_libxl if options.libxl else _serve_zmq
        try:
            serve(options, settings, trace, watchdog, seams, remarks)
        except ChannelError as over:
            return report_channel_error(over, trace)
    except UsageError as wrong:
        # A controller repeats the last line.
        print(f"{USAGE}\n{here()}\n\n{CONTEXT}: {wrong}", file=sys.stderr)
        return EXIT_FAILED


def _printed() -> int:
    """The exit status of an option that only prints."""
    if error := lost(sys.stdout):
        print(f"{CONTEXT}: stdout: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_DONE


def _operation(options: Options) -> str:
    """The operation, if the command line says it; empty if only the controller will."""
    if options.libxl:
        return options.libxl[0].removeprefix("--").removesuffix("-domain")
    return options.operation


def _seams(options: Options, settings: Settings, trace: Trace) -> Seams:
    """Seams with the faults of the given plan, if there is one."""
    given = options.faults or settings.faults
    if not given:
        return Seams()
    from xen_save_helper.helper.faults.seams import FaultySeams

    return FaultySeams(given, _operation(options), trace, pipe=bool(options.libxl))


def _exit(status: int, seams: Seams, parent: int = -1) -> NoReturn:
    """End the process while the abort watcher still has the signals: during the interpreter's own
    teardown a late SIGTERM would kill a helper whose save was reported as done. `parent` is the
    descriptor of OUTLIVE."""
    if parent >= 0:
        from xen_save_helper.helper.postcopy_link import last_word

        last_word.say(last_word.ENDS, parent)
    seams.step("exit")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve_zmq(
    options: Options,
    settings: Settings,
    trace: Trace,
    watchdog: Watchdog,
    seams: Seams,
    remarks: list[str],
) -> NoReturn:
    from xen_save_helper.ipc_schema.channel.authentication import SECRET_SIZE

    if options.outlive and OUTLIVE not in os.environ:
        from xen_save_helper.helper.postcopy_link.outlive import inherited, run_beside

        watchdog.stop()
        run_beside(sys.argv[1:], inherited())
    parent = _outlived(trace)
    path = options.connect.removeprefix("ipc://")
    if path == options.connect or not os.path.exists(path):
        raise UsageError(f"--connect {options.connect}: want ipc:// and the path of a socket")
    try:
        secret = os.read(options.secret_fd, SECRET_SIZE + 1)
        os.set_inheritable(options.secret_fd, False)
    except OSError as bad:
        raise UsageError(f"--secret-fd {options.secret_fd}: {bad.strerror}") from None
    if len(secret) != SECRET_SIZE:
        raise UsageError(f"--secret-fd: {len(secret)} bytes, want {SECRET_SIZE}")

    channel = seams.zmq_channel()(options.connect, secret, answer_limit_of(options, settings))
    try:
        channel.hello()
        trace.event("hello")
        seams.step("hello")
        start = channel.wait_for_start(options.secret_fd, options.start_limit)
        trace.event("start", **{name: start[name] for name in start if name != "proof"})
        job = _job_of_start(start, options, settings)._replace(
            parent=parent, board=take_board(os.environ, remarks.append)
        )
        if job.request.stream_type is not StreamType.PLAIN:
            watchdog.stop()
        seams.begin(job)
        abort = _abort(job, options.secret_fd, watchdog)
        channel.attend(abort)
    except ChannelError:
        channel.close()
        raise
    with abort:
        status = run(job, channel, abort, seams.traced(trace), seams, remarks)
        channel.close()
        _exit(status, seams, parent)


def _job_of_start(start: dict[str, Any], options: Options, settings: Settings) -> Job:
    name = start["engine"]
    if name not in set(Engine):
        raise ChannelError(
            errno.ENOTSUP, f"engine {name!r}: this helper has {' and '.join(Engine)}"
        )
    try:
        request = request_of_start(start)
    except ValueError as bad:
        raise ChannelError(errno.EPROTO, f"start: {bad}") from None
    try:
        listen = parse_listen(request.link) if request.link else None
    except ValueError as bad:
        raise ChannelError(errno.EPROTO, f"start: link {request.link!r}: want {bad}") from None
    plain = request.stream_type is StreamType.PLAIN
    return Job(
        request,
        stall_limit=stall_limit_of(options, settings) if plain else 0.0,
        admission=options.admission if plain and request.operation is Operation.SAVE else 0.0,
        limits=precopy_limits_of(settings),
        device_model=settings.device_model,
        listen=listen,
        control=request.control,
        events=options.events or settings.events,
    )


def _serve_libxl(
    options: Options,
    settings: Settings,
    trace: Trace,
    watchdog: Watchdog,
    seams: Seams,
    remarks: list[str],
) -> NoReturn:
    from xen_save_helper.ipc_schema.channel import helper_arguments

    try:
        dialect = _dialect(settings.dialect) if settings.dialect else None
        given = helper_arguments.parse(options.libxl, dialect)
    except ValueError as bad:
        raise UsageError(str(bad)) from None
    stream_type = given.request.stream_type
    if (
        settings.postcopy is not None
        and given.request.operation is Operation.RESTORE
        and stream_type is StreamType.PLAIN
        and not {OUTLIVE, HAND_OVER} & os.environ.keys()
    ):
        from xen_save_helper.helper.postcopy_link.outlive import run_beside

        watchdog.stop()
        run_beside(
            list(options.libxl),
            [fd for fd in (given.request.io_fd, given.request.back_fd) if fd >= 0],
        )
    stall_limit = stall_limit_of(options, settings)
    answer_limit = answer_limit_of(options, settings)
    if stream_type is not StreamType.PLAIN:
        # libxc would take giving up for the other side's death, and the guest would run at both.
        remarks += limits_that_do_not_hold(settings, stream_type)
        stall_limit = answer_limit = 0.0
        watchdog.stop()
    trace.event(
        "start",
        arguments=list(options.libxl),
        dialect=given.dialect.value,
        stream_stall=stall_limit,
    )
    parent = _outlived(trace)
    answers, messages = _take_pipes()
    request = given.request._replace(
        hypervisor=settings.hypervisor,
        engine=settings.engine or DEFAULT_ENGINE,
        postcopy="postcopy_transition" in callbacks_of(given.cbflags, given.dialect)
        and given.request.back_fd >= 0,
        missing_cpu_features=settings.missing_cpu_features,
        sparse=settings.sparse and given.request.operation is Operation.SAVE,
        max_downtime_ms=settings.max_downtime_ms or 0,
    )
    job = Job(
        request,
        stall_limit=stall_limit,
        limits=precopy_limits_of(settings),
        device_model=settings.device_model,
        listen=settings.postcopy,
        parent=parent,
        control=settings.control,
        events=options.events or settings.events,
    )
    abort = _abort(job, answers, watchdog)
    seams.begin(job)
    channel = seams.pipe_channel()(
        answers, messages, given.dialect, given.cbflags, abort, answer_limit
    )
    seams.step("hello")

    def told(level: XentoollogLevel, text: str) -> bool:
        if not channel.remark(level, text):
            return False
        trace.event("waiting", text=text)
        return True

    if (path := os.environ.get(HAND_OVER)) and request.operation is Operation.RESTORE:
        from xen_save_helper.helper.handed_over import serve

        watchdog.stop()
        with abort:
            _exit(serve(path, request, channel, abort), seams)
    if not stall_limit:
        abort.tell_of_waits(told)
    with abort:
        job = _steered(job, abort, trace, channel.remark, remarks)
        status = run(job, channel, abort, seams.traced(trace), seams, remarks)
        if job.steered is not None:
            job.steered.close()
        _exit(status, seams, parent)


def _steered(
    job: Job,
    abort: Abort,
    trace: Trace,
    remark: Callable[[XentoollogLevel, str], bool],
    remarks: list[str],
) -> Job:
    """The job, to be seen and steered by others: through a controller of ours if there is one. A
    checkpointed stream never ends, and giving it up would be taken for its side's death."""
    if (board := take_board(os.environ, remarks.append)) is not None:
        return job._replace(board=board)
    if job.request.stream_type is not StreamType.PLAIN:
        return job
    from xen_save_helper.helper.operation_control import OperationControl

    board = Board()
    by_link = job.listen is not None
    control = OperationControl(
        job.request, job.control, board, abort, trace, remark, by_link=by_link
    )
    return job._replace(board=board, steered=control)


def _outlived(trace: Trace) -> int:
    """The descriptor of OUTLIVE, -1 for none."""
    parent = os.environ.get(OUTLIVE)
    if parent is None:
        return -1
    # It is the helper for the controller, which may kill it: then this process is no use either.
    die_with_parent(signal.SIGKILL)
    trace.event("outlives", started=os.getppid())
    os.set_inheritable(int(parent), False)
    return int(parent)


def _dialect(name: str) -> Dialect:
    try:
        return Dialect(name)
    except ValueError:
        known = ", ".join(dialect.value for dialect in Dialect)
        raise ValueError(f"XEN_SAVE_HELPER_DIALECT {name!r}: want one of {known}") from None


def _watchdog(options: Options, settings: Settings, trace: Trace) -> Watchdog:
    """Start the watchdog, which runs until the process ends."""

    def hung(reason: str) -> NoReturn:
        trace.event("failure", what="watchdog", error=reason, cause=Cause.SILENCE)
        with contextlib.suppress(OSError):  # nobody reads it
            os.write(2, f"{CONTEXT}: {reason}\n".encode())
        os._exit(EXIT_FAILED)

    stall_limit = stall_limit_of(options, settings)
    longest = max(stall_limit, options.admission) if stall_limit else 0.0
    limit = limit_of(longest, answer_limit_of(options, settings))
    watchdog = Watchdog(limit, hung)
    watchdog.start()
    return watchdog


def _abort(job: Job, lifeline: int, watchdog: Watchdog) -> Abort:
    signals: frozenset[signal.Signals] = frozenset()
    if job.request.operation is Operation.SAVE:
        signals = SAVE_SIGNALS
    else:
        # As in libxl's setup_signals: the parent may have ignored it, or blocked it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        # Python's own handler of SIGINT would wait for libxc to come back.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    return Abort(
        lifeline=lifeline,
        signals=signals,
        stall_limit=job.stall_limit,
        admission=job.admission,
        watchdog=watchdog,
    )


def _take_pipes() -> tuple[int, int]:
    """Move stdin and stdout to descriptors that no stray print can reach; anything printed from
    here on goes to stderr."""
    try:
        answers, messages = os.dup(0), os.dup(1)
    except OSError as bad:
        raise UsageError(f"stdin and stdout must be libxl's pipes: {bad.strerror}") from None
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0, inheritable=False)
    os.dup2(2, 1, inheritable=False)
    return answers, messages


if __name__ == "__main__":
    sys.exit(main())
