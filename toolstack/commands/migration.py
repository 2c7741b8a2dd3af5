"""migrate, receive, recover."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from helper.hypervisors import XEN
from toolstack import receive as receiving
from toolstack.commands.common import (
    CommandError,
    UsageError,
    directory_of,
    domid_of,
    host_at,
    host_of,
    hypervisor_of,
    show,
)
from toolstack.commands.running import context_of, progress_for, run
from toolstack.handshake import base_name
from toolstack.migrate import (
    CommandDestination,
    Destination,
    HostDestination,
    MigrateOptions,
)
from toolstack.migrate import migrate as migrate_guest
from toolstack.outcome import ExitCode, MigrationResult, Outcome
from toolstack.precopy_policy import MemoryStrategy, PrecopyLimits
from toolstack.recover import WayOut
from toolstack.recover import recover as recover_guest


def migrate(arguments: argparse.Namespace) -> int:
    options = MigrateOptions(
        strategy=MemoryStrategy.POSTCOPY if arguments.postcopy else MemoryStrategy.DEFAULT,
        precopy=PrecopyLimits(arguments.dirty_threshold, arguments.max_rounds),
        bandwidth=arguments.bandwidth,
    )
    with progress_for(arguments, f"migrate {arguments.name}") as progress:
        ctx = context_of(arguments, progress=progress)
        domid = domid_of(ctx.host, arguments.name)
        destination = destination_of(arguments)
        result = run(migrate_guest(ctx, domid, destination, options))
    return report(arguments, result)


def report(
    arguments: argparse.Namespace,
    result: MigrationResult,
    extra: Sequence[tuple[str, str]] = (),
) -> int:
    """Print how a migration ended; a failure's one line goes to stderr. Returns the exit code."""

    def human() -> None:
        importlib.import_module("toolstack.commands.display").migration(result, extra)

    show(arguments, result.as_json(), human)
    if result.outcome is not Outcome.SUCCESS:
        line = " ".join(f"{result.outcome.value}: {result.reason}".split())
        print(f"xen-toolstack: {line}", file=sys.stderr)
    return result.exit_code


def receiver_arguments(arguments: argparse.Namespace) -> list[str]:
    """What a receiver on this machine is given of our own options."""
    given = [f"--limit={setting}" for setting in arguments.limit]
    if arguments.events is not None:
        given.append(f"--events={Path(arguments.events).absolute()}")
    given.append(f"--from={directory_of(arguments).absolute()}")
    return given


def destination_of(arguments: argparse.Namespace) -> Destination:
    """A directory is a simulated host on this machine; all else is a command, as for
    `xl migrate -s`.

    Raises CommandError for a directory that is no host, for a simulated host where the guest is a
    real one, and for what looks like a path and is neither a directory nor a program.
    """
    text: str = arguments.to
    # A command may be longer than a name can be.
    if os.path.isdir(text):
        path = Path(text)
        if hypervisor_of(arguments) == XEN:
            raise CommandError(
                f"{text} is a directory, and no simulated host can run a real guest; --to wants a "
                "command, such as `ssh there xl migrate-receive`"
            )
        return HostDestination(path.absolute(), host_at(path), receiver_arguments(arguments))
    if "/" in text and not text.split()[1:] and shutil.which(text) is None:
        raise CommandError(
            f"{text} is neither a host's directory nor a command; `xen-toolstack init {text}` "
            "makes a host"
        )
    if not text.strip():
        raise UsageError("--to: want a host's directory or a command")
    return CommandDestination(text)


def receive(arguments: argparse.Namespace) -> int:
    """Serve one migration on stdin and stdout.

    They are moved away from 0 and 1 first: no helper and no stray print may touch the stream.
    """
    ctx = context_of(arguments, "receiver")
    stream, back = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    try:
        result = run(receiving.receive(ctx, stream, back, peer=arguments.source))
    finally:
        os.close(stream)
        os.close(back)
    if not result.started:
        print(f"xen-toolstack: {result.reason or 'not started'}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.SUCCESS


def recover(arguments: argparse.Namespace) -> int:
    way_out = None
    if arguments.resume:
        way_out = WayOut.RESUME
    elif arguments.destroy:
        way_out = WayOut.DESTROY
    host = host_of(arguments)
    recoveries = recover_guest(host, arguments.name, way_out)
    if not recoveries:
        name = arguments.name
        if base_name(name) == name:
            domid_of(host, name)
        text = f"nothing was left in the middle for {name!r}"
        show(arguments, [], lambda: print(text))
        return ExitCode.SUCCESS
    rows = [
        {
            "name": recovery.name,
            "role": recovery.role and recovery.role.value,
            "promise": recovery.promise and recovery.promise.value,
            "way": recovery.way.value,
            "done": recovery.done,
            "text": recovery.text,
        }
        for recovery in recoveries
    ]

    def human() -> None:
        for recovery in recoveries:
            if recovery.done:
                print(recovery.text)

    show(arguments, rows, human)
    for recovery in recoveries:
        if not recovery.done:
            print(f"xen-toolstack: {recovery.text}", file=sys.stderr)
    return ExitCode.SUCCESS if all(recovery.done for recovery in recoveries) else ExitCode.FAILED
