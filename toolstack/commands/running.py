"""Common parts of the commands that run helpers: a context, a trace, an orderly end by signals."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.helper.standard_streams import hurried, hurry
from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Dialect, MissingCpuFeatures, XentoollogLevel
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.commands.common import (
    ENDING_SIGNALS,
    Interrupted,
    UsageError,
    host_of,
    hypervisor_of,
)
from xen_save_helper.toolstack.commands.progress import progress_line
from xen_save_helper.toolstack.context import OURS, Context, ProgressLine, no_progress
from xen_save_helper.toolstack.helpers.request import HelperProgram, OwnHelper, PipeHelper
from xen_save_helper.toolstack.limits import Limits
from xen_save_helper.toolstack.seams import Seams

T = TypeVar("T")

LIBXL: Final = "libxl"
"""The `--helper` that stands for libxl's own."""


def open_trace(arguments: argparse.Namespace, process: str) -> Trace:
    """A trace into `--events FILE`, which the helpers that we start write to as well. A file that
    cannot be written does not fail the operation."""
    if arguments.events is None:
        return Trace(process)
    path = Path(arguments.events).absolute()

    def problem(error: OSError, what: str) -> None:
        text = f"xen-toolstack: events file {path}: {error.strerror}: {what}"
        print(text, file=sys.stderr, flush=True)

    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOCTTY
    try:
        # O_NONBLOCK: a FIFO is not waited for, neither to open nor to write.
        file = os.open(path, flags | os.O_NONBLOCK, 0o644)
    except OSError as error:
        problem(error, "there is no trace")
        return Trace(process)
    os.environ[variables.EVENTS] = str(path)
    return Trace(
        process, lambda line: os.write(file, line), lambda e: problem(e, "the trace ends here")
    )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def context_of(
    arguments: argparse.Namespace,
    process: str = "controller",
    *,
    progress: ProgressLine = no_progress,
    say: Callable[[str], object] = _to_stderr,
) -> Context:
    """The context of a command, by its --host, --helper, --limit and other options; `say` is called
    with each line of its log. Raises UsageError, CommandError, OSError."""
    hypervisor = hypervisor_of(arguments)
    trace = open_trace(arguments, process)
    program = _program_of(arguments.helper, hypervisor)
    engine = _engine_of(arguments, hypervisor)
    return Context(
        host=host_of(arguments),
        hypervisor=hypervisor,
        trace=trace,
        limits=limits_of(arguments),
        log=partial(_log if arguments.verbose else _log_ours, say),
        progress=progress,
        program=program,
        seams=_seams(trace, program),
        missing_cpu_features=_missing_cpu_features(arguments),
        engine_choice=engine,
    )


def _engine_of(arguments: argparse.Namespace, hypervisor: str) -> Engine | None:
    """The engine of `--engine`. Raises UsageError if it would have no effect."""
    if arguments.engine is None:
        return None
    if arguments.helper is not None:
        raise UsageError("--engine is for our own helper; leave out --helper")
    if hypervisor != XEN and arguments.engine == Engine.LIBXENGUEST:
        raise UsageError(f"--engine {Engine.LIBXENGUEST}: libxenguest works on real domains only")
    return Engine(arguments.engine)


def _missing_cpu_features(arguments: argparse.Namespace) -> MissingCpuFeatures:
    """The option's value; a command that restores nothing here has no such option."""
    return MissingCpuFeatures(getattr(arguments, "missing_cpu_features", MissingCpuFeatures.REFUSE))


def _seams(trace: Trace, program: HelperProgram) -> Seams:
    """The seams of the environment's fault plan, if it has anything for us. The helpers and the
    receiver that we start read it as well, with the seed that we drew. Raises UsageError."""
    given = os.environ.get(variables.FAULTS)
    if not given:
        return Seams()
    from xen_save_helper.helper.faults.plan_files import read_plan
    from xen_save_helper.toolstack.faults.controller import ControllerFaults

    try:
        typed = read_plan(given)
        plan = typed.seeded()
        faults = ControllerFaults(plan, trace)
    except ValueError as error:
        raise UsageError(f"{variables.FAULTS}: {error}") from error
    os.environ[variables.FAULTS] = str(plan)
    if plan.by_chance and typed.seed is None:
        print(f"{OURS}: faults: seed={plan.seed}", file=sys.stderr, flush=True)
    if isinstance(program, PipeHelper) and faults.of_messages:
        raise UsageError(
            f"{variables.FAULTS}: '{faults.of_messages[0]}': the controller has no such point when "
            "it speaks libxl's protocol (--helper)"
        )
    return Seams() if faults.idle else faults


def _program_of(text: str | None, hypervisor: str) -> HelperProgram:
    """The helper for `--helper`: ours by default, libxl's own for `libxl`, else the program at a
    path, which speaks libxl's protocol."""
    if text is None:
        return OwnHelper()
    if text == LIBXL:
        if hypervisor != XEN:
            raise UsageError(f"--helper {LIBXL}: libxl's helper works on real domains only")
        from xen_save_helper.toolstack.hosts.xen.xl import save_helper

        return PipeHelper(save_helper(), Dialect.MAINLINE)
    path = Path(text).absolute()
    if not os.access(path, os.X_OK) or not path.is_file():
        raise UsageError(f"--helper {text}: want {LIBXL} or the path of a program")
    return PipeHelper(path, Dialect.MAINLINE)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The limits of `--limit`. Raises UsageError for an unknown or invalid one."""
    try:
        return Limits.parse(arguments.limit)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _log(say: Callable[[str], object], level: int, context: str, text: str) -> None:
    say(f"{context}[{level}]: {text}")


def _log_ours(say: Callable[[str], object], level: int, context: str, text: str) -> None:
    if context == OURS and level >= XentoollogLevel.WARN:
        say(f"{context}: {text}")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a loop; SIGINT, SIGTERM and SIGHUP cancel it, which ends it in order. A SIGHUP
    that was ignored (nohup) stays so. No line on stderr holds `work` up. Once it is done, signals
    only end the printing of what was done.

    Raises Interrupted if `work` was cancelled and does not say itself what came of it.
    """
    ending = [
        number
        for number in ENDING_SIGNALS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]

    async def supervised() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)
        for number in ending:
            loop.add_signal_handler(number, task.cancel)
        try:
            return await task
        finally:
            # The end of the loop restores the old handlers.
            signal.pthread_sigmask(signal.SIG_BLOCK, ending)

    try:
        with hurried(sys.stderr):
            return asyncio.run(supervised())
    except asyncio.CancelledError:
        raise Interrupted from None
    finally:
        for number in ending:
            signal.signal(number, _end_printing)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ending)


def _end_printing(*_: object) -> None:
    for stream in (sys.stdout, sys.stderr):
        hurry(stream)


def can_show_progress() -> bool:
    """Whether stderr is a terminal that can repaint a line."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"


@contextlib.contextmanager
def progress_for(arguments: argparse.Namespace, title: str) -> Iterator[ProgressLine]:
    """A progress line on stderr, if that is a terminal that can show one."""
    if arguments.json or not can_show_progress():
        yield no_progress
        return
    with progress_line(title) as progress:
        yield progress
