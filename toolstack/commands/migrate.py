"""The command migrate, and how migrate and demo report."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.channel.messages import MissingCpuFeatures
from xen_save_helper.ipc_schema.channel.precopy_rule import PrecopyLimits
from xen_save_helper.toolstack.cancellation import told
from xen_save_helper.toolstack.commands.common import (
    CommandError,
    UsageError,
    complain,
    directory_of,
    guest_of,
    host_at,
    hypervisor_of,
    show,
)
from xen_save_helper.toolstack.commands.own_timeline import own_timeline
from xen_save_helper.toolstack.commands.running import context_of, progress_for, run
from xen_save_helper.toolstack.operations.settle import DEAD, GuestStateError
from xen_save_helper.toolstack.rules.precopy_policy import MemoryStrategy
from xen_save_helper.toolstack.xl.configuration import ConfigurationError, read_configuration
from xen_save_helper.toolstack.xl.migrate import migrate as migrate_guest
from xen_save_helper.toolstack.xl.migrate_options import (
    CommandDestination,
    Destination,
    HostDestination,
    MigrateOptions,
)
from xen_save_helper.toolstack.xl.outcome import (
    ExitCode,
    MigrationResult,
    Outcome,
    told_once,
    where_guest_is,
)


def migrate(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    with own_timeline(arguments) as timeline:
        result = _migrate(arguments, options)
        rows = timeline.draw()
    return report(arguments, result, rows)


def _migrate(arguments: argparse.Namespace, options: MigrateOptions) -> MigrationResult:
    with progress_for(arguments, f"migrate {arguments.name}") as progress:
        ctx = context_of(arguments, progress=progress)
        domid = guest_of(ctx.host, arguments.name).domid
        destination = destination_of(arguments, arguments.to)
        try:
            return run(told(partial(migrate_guest, ctx, domid, destination, options)))
        except GuestStateError as error:
            if error.state not in DEAD:
                raise
            raise CommandError(str(error), ExitCode.GUEST_DIED) from error


def options_of(arguments: argparse.Namespace) -> MigrateOptions:
    """The options of a migration. Raises UsageError for options that exclude each other,
    CommandError for a file without a configuration, and OSError."""
    config = None
    if arguments.config is not None:
        try:
            config = read_configuration(Path(arguments.config))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
    try:
        return MigrateOptions(
            strategy=MemoryStrategy.POSTCOPY if arguments.postcopy else MemoryStrategy.DEFAULT,
            precopy=PrecopyLimits(
                arguments.dirty_threshold,
                arguments.max_rounds,
                arguments.max_downtime,
                arguments.abort_after,
            ),
            bandwidth=arguments.bandwidth,
            paused=arguments.paused,
            config=config,
            debug=arguments.debug,
            sparse=arguments.sparse,
            link=arguments.link,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def report(
    arguments: argparse.Namespace,
    result: MigrationResult,
    rows: Sequence[tuple[str, str]] = (),
    extra: Mapping[str, object] = MappingProxyType({}),
) -> int:
    """Print how a migration ended, with more `rows` for people and `extra` fields in JSON; the one
    line of a failure goes to stderr. Returns the exit code."""

    def human() -> None:
        from xen_save_helper.toolstack.commands.display import migration

        migration(result, rows)

    show(arguments, {**result.as_json(), **extra}, human)
    if result.outcome is not Outcome.SUCCESS:
        complain(arguments, told_once(result.reason, where_now(result)))
    return result.exit_code


def where_now(result: MigrationResult) -> str:
    """What has become of a guest that did not migrate, as a clause."""
    state = result.guest.state
    match result.outcome:
        case Outcome.POSTCOPY_FAILED if state is None:
            return "the suspended guest is no longer at the source"
        case Outcome.POSTCOPY_FAILED:
            return "the guest is left suspended at the source"
        case Outcome.UNDEFINED:
            return "the guest is suspended at the source and may run at the destination: look there"
        case Outcome.GUEST_DIED:
            return where_guest_is(state, f"at {result.guest.host}")
    if state in {None, "running"}:
        return "the guest runs on at the source"
    return where_guest_is(state, "at the source")


def receiver_arguments(arguments: argparse.Namespace) -> list[str]:
    """The options of ours that a receiver on this machine is given."""
    given = [f"--limit={setting}" for setting in arguments.limit]
    if arguments.events is not None:
        given.append(f"--events={Path(arguments.events).absolute()}")
    given.append(f"--missing-cpu-features={arguments.missing_cpu_features}")
    given.append(f"--from={directory_of(arguments).absolute()}")
    return given


def destination_of(arguments: argparse.Namespace, text: str) -> Destination:
    """The destination that a --to names by `text`: a directory is a simulated host on this machine,
    anything else is a command, as for `xl migrate -s`.

    Raises CommandError for a directory that is not a host, for a simulated host if the guest is a
    real one, and for what looks like a path but is neither a directory nor a program; UsageError
    for an empty command, and for options that do not reach a command's receiver.
    """
    # os.path: pathlib fails for a command that is longer than a name can be.
    if os.path.isdir(text):
        path = Path(text)
        if hypervisor_of(arguments) == XEN:
            raise CommandError(
                f"{text} is a directory, and a simulated host cannot run a real guest; --to wants "
                "a command, such as `ssh there xl migrate-receive`"
            )
        return HostDestination(path.absolute(), host_at(path), receiver_arguments(arguments))
    if "/" in text and not text.split()[1:] and shutil.which(text) is None:
        raise CommandError(
            f"{text} is neither a host's directory nor a command; `xen-toolstack init {text}` "
            "makes a host"
        )
    if not text.strip():
        raise UsageError("--to: want a host's directory or a command")
    if arguments.missing_cpu_features != MissingCpuFeatures.REFUSE:
        raise UsageError(
            "--missing-cpu-features only reaches a receiver on this machine; give it to the "
            "receiver in the command: `... xen-toolstack receive --missing-cpu-features "
            f"{arguments.missing_cpu_features}`"
        )
    return CommandDestination(text)
