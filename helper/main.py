"""The command `xen-save-helper`: the process that runs one save or one restore.

Nothing here may cost start-up time that `hello` does not need; the two channels and the engine
are imported once it is known which of them is wanted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from helper.abort import SAVE_SIGNALS, Abort
from helper.channel import ChannelError
from helper.run import CONTEXT, EXIT_DONE, EXIT_FAILED, Job, report_channel_error, run
from ipc_schema.authentication import SECRET_SIZE
from ipc_schema.messages import Dialect, Operation, StreamType
from ipc_schema.trace import Trace

USAGE: Final = f"""\
{CONTEXT}: saves or restores one Xen domain for a toolstack, which starts it.

  {CONTEXT} --save-domain NUMBER...      started by libxl (set LIBXL_SAVE_HELPER to this
  {CONTEXT} --restore-domain NUMBER...   program's path); speaks libxl's protocol on stdin, stdout
  {CONTEXT} --connect ENDPOINT --secret-fd N [--heartbeat S] [--stream-stall S] [--start-limit S]
                                           started by xen-toolstack; speaks over ZeroMQ

  --events FILE (or XEN_SAVE_HELPER_EVENTS): append a JSON line for each event.
With libxl: XEN_SAVE_HELPER_DIALECT ({", ".join(dialect.value for dialect in Dialect)}) where the
arguments do not tell, XEN_SAVE_HELPER_HYPERVISOR=sim:DIRECTORY for a simulated host,
XEN_SAVE_HELPER_STREAM_STALL seconds (default 60) that a stream may stand still.
Exit status: 0 the result was told, 254 the controller is gone, 255 any error of its own.
"""


class UsageError(Exception):
    """The command line or the environment is not right."""


@dataclass
class _Options:
    connect: str = ""
    secret_fd: int = -1
    heartbeat: float = 10.0
    stream_stall: float = 60.0
    start_limit: float = 10.0
    events: str = ""


def main() -> int:
    """Run as a process; returns its exit status."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return EXIT_DONE
    try:
        options, libxl_arguments = _parse(arguments)
        trace = _open_trace(options.events or os.environ.get("XEN_SAVE_HELPER_EVENTS", ""))
        if libxl_arguments:
            _serve_libxl(libxl_arguments, options, trace)
        _serve_zmq(options, trace)
    except UsageError as wrong:
        print(f"{CONTEXT}: {wrong}\n\n{USAGE}", end="", file=sys.stderr)
        return EXIT_FAILED
    except ChannelError as over:
        return report_channel_error(over)


def _parse(arguments: Sequence[str]) -> tuple[_Options, list[str]]:
    """Our options, and libxl's part of the command line (empty where it did not start us)."""
    options = _Options()
    rest = list(arguments)
    while rest and rest[0] not in ("--save-domain", "--restore-domain"):
        option = rest.pop(0)
        name = option.removeprefix("--").replace("-", "_")
        if not option.startswith("--") or not hasattr(options, name):
            raise UsageError(f"{option!r} is no option")
        if not rest:
            raise UsageError(f"{option} needs a value")
        setattr(options, name, _value(option, rest.pop(0), type(getattr(options, name))))
    if rest and options.connect:
        raise UsageError("--connect and libxl's arguments exclude each other")
    if not rest and not options.connect:
        raise UsageError("--save-domain, --restore-domain or --connect is missing")
    if not rest and options.secret_fd < 0:
        raise UsageError("--secret-fd is missing")
    return options, rest


def _value(option: str, text: str, kind: type) -> str | int | float:
    if kind is str:
        return text
    try:
        number: int | float = kind(text)
    except ValueError:
        number = -1
    if not 0 <= number < 2**31:
        raise UsageError(f"{option} {text!r}: want a number from 0 on")
    return number


def _open_trace(path: str) -> Trace:
    if not path:
        return Trace("helper")
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as bad:
        raise UsageError(f"events file {path}: {bad.strerror}") from None
    return Trace("helper", lambda line: os.write(fd, line))


def _signals(operation: Operation) -> frozenset[signal.Signals]:
    return SAVE_SIGNALS if operation is Operation.SAVE else frozenset()


def _exit(status: int) -> NoReturn:
    """End the process while the abort watcher still has the signals: in the interpreter's own
    teardown a late SIGTERM would turn a save that is told as done into a killed one."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _serve_zmq(options: _Options, trace: Trace) -> NoReturn:
    path = options.connect.removeprefix("ipc://")
    if path == options.connect or not os.path.exists(path):
        raise UsageError(f"--connect {options.connect}: want ipc:// and the path of a socket")
    try:
        secret = os.read(options.secret_fd, SECRET_SIZE + 1)
        os.set_inheritable(options.secret_fd, False)
    except OSError as bad:
        raise UsageError(f"--secret-fd {options.secret_fd}: {bad.strerror}") from None
    if len(secret) != SECRET_SIZE:
        raise UsageError(f"--secret-fd: {len(secret)} octets, want {SECRET_SIZE}")

    from helper.zmq_channel import ZmqChannel

    channel = ZmqChannel(options.connect, secret, options.heartbeat)
    try:
        channel.hello()
        trace.event("hello")
        start = channel.wait_for_start(options.secret_fd, options.start_limit)
        trace.event("start", **{name: start[name] for name in start if name != "proof"})
        job = _job_of_start(start, options.stream_stall)
        abort = Abort(
            lifeline=options.secret_fd,
            signals=_signals(job.operation),
            stall_limit=options.stream_stall,
        )
        channel.attend(abort)
    except ChannelError:
        channel.close()
        raise
    with abort:
        status = run(job, channel, abort, trace)
        channel.close()
        _exit(status)


def _job_of_start(start: dict[str, Any], stall_limit: float) -> Job:
    engine = start.pop("engine")
    if engine != "own":
        raise ChannelError(errno.ENOTSUP, f"engine {engine!r}: this helper has only its own")
    try:
        operation = Operation(start.pop("operation"))
        stream_type = StreamType(start.pop("stream_type"))
    except ValueError as bad:
        raise ChannelError(errno.EPROTO, f"start: {bad}") from None
    fields = {name: start[name] for name in Job.__dataclass_fields__ if name in start}
    return Job(operation=operation, stream_type=stream_type, stall_limit=stall_limit, **fields)


def _serve_libxl(arguments: list[str], options: _Options, trace: Trace) -> NoReturn:
    from helper.pipe_channel import PipeChannel
    from ipc_schema import helper_arguments

    name = os.environ.get("XEN_SAVE_HELPER_DIALECT", "")
    try:
        given = helper_arguments.parse(arguments, _dialect(name) if name else None)
    except ValueError as bad:
        raise UsageError(str(bad)) from None
    stall = os.environ.get("XEN_SAVE_HELPER_STREAM_STALL", "")
    stall_limit = float(_value("XEN_SAVE_HELPER_STREAM_STALL", stall, float)) if stall else 60.0
    answers, messages = _take_pipes()
    abort = Abort(lifeline=answers, signals=_signals(given.operation), stall_limit=stall_limit)
    channel = PipeChannel(answers, messages, given.dialect, given.cbflags, abort)
    hypervisor = os.environ.get("XEN_SAVE_HELPER_HYPERVISOR", "xen")
    job = Job(
        operation=given.operation,
        domid=given.domid,
        io_fd=given.io_fd,
        back_fd=given.back_fd,
        xcflags=given.xcflags,
        stream_type=given.stream_type,
        store_evtchn=given.store_evtchn,
        store_domid=given.store_domid,
        console_evtchn=given.console_evtchn,
        console_domid=given.console_domid,
        hypervisor=hypervisor,
        bandwidth=0,
        postcopy=given.back_fd >= 0 and channel.provides("postcopy_transition"),
        stall_limit=stall_limit,
    )
    with abort:
        _exit(run(job, channel, abort, trace))


def _dialect(name: str) -> Dialect:
    try:
        return Dialect(name)
    except ValueError:
        known = ", ".join(dialect.value for dialect in Dialect)
        raise ValueError(f"XEN_SAVE_HELPER_DIALECT {name!r}: want one of {known}") from None


def _take_pipes() -> tuple[int, int]:
    """stdin and stdout, moved away from where a stray print would write into the conversation:
    what is printed from here on goes to stderr."""
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
