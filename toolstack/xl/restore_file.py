"""Restores a guest from a file: `xl restore`."""

from __future__ import annotations

import asyncio
import os
import stat
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xen_save_helper.ipc_schema.causes import why
from xen_save_helper.ipc_schema.control import Role as ControlRole
from xen_save_helper.ipc_schema.errors import DecodeError, Error, rc_name
from xen_save_helper.toolstack.aio import descriptors, file_argument
from xen_save_helper.toolstack.cancellation import end_in_order, not_told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import Statistics
from xen_save_helper.toolstack.inspect.foreign_formats import NotAStreamError
from xen_save_helper.toolstack.operations.domain_restore import restore_domain, restore_parameters
from xen_save_helper.toolstack.operations.restore import RestoreParameters, RestoreResult
from xen_save_helper.toolstack.operations.settle import state_of
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import INCOMING
from xen_save_helper.toolstack.xl.controlled import controlled
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role
from xen_save_helper.toolstack.xl.receive import name_of, parse_config, uuid_of
from xen_save_helper.toolstack.xl.save_file import SaveFileError
from xen_save_helper.toolstack.xl.stream_input import end_of_stream, opened, read_preface


@dataclass(frozen=True)
class Restored:
    """A restored guest; `state` is `running` or `paused`."""

    name: str
    domid: int
    state: str
    statistics: Statistics | None


async def restore(
    ctx: Context,
    file: Path | int,
    *,
    leave_paused: bool = False,
    name: str | None = None,
    config: Mapping[str, Any] | None = None,
    on_end: Callable[[Restored], object] = not_told,
) -> Restored:
    """Restore a guest from `file`, a path or a descriptor open for reading, and let it run.
    `config` replaces the configuration in the file, `name` the name in it. Until the guest is whole
    it has another name (`handshake.INCOMING`), which tells a copy that was given up from any other
    guest. A descriptor of a regular file is left positioned behind the stream.

    Raises SaveFileError, also for a file that is not a whole xl save file (a regular file is looked
    through before anything is built), FileExistsError and OSError: then nothing of the guest is
    left here, or a journal is, by which `recover` finishes it. Raises TypeError and ValueError for
    invalid arguments.

    A cancellation ends the restore in the same way, and is raised as that of `save` is.
    """
    arguments.instance("ctx", ctx, Context)
    if name is not None:
        arguments.domain_name(name)
    if config is not None:
        arguments.configuration(config)
    work = _restore(
        ctx, descriptors.file(file), leave_paused=leave_paused, name=name, config=config
    )
    return await end_in_order(work, on_end)


async def _restore(
    ctx: Context,
    file: Path | int,
    *,
    leave_paused: bool,
    name: str | None,
    config: Mapping[str, Any] | None,
) -> Restored:
    """Restore without `end_in_order`: a cancellation ends the restore as a SaveFileError."""
    try:
        return await _restore_from(ctx, file, leave_paused, name, config)
    except asyncio.CancelledError as error:
        raise SaveFileError(
            f"cannot restore from {file_argument.name_of(file)}: the restore was cancelled; "
            "nothing of it is left here"
        ) from error


async def _restore_from(
    ctx: Context,
    file: Path | int,
    leave_paused: bool,
    name: str | None,
    config: Mapping[str, Any] | None,
) -> Restored:
    path = file_argument.name_of(file)
    if name is not None or config is not None:
        _check_free(ctx, name or name_of(dict(config or {})))
    async with opened(file, ctx.limits.handshake) as fd:
        seekable = stat.S_ISREG(os.fstat(fd).st_mode)
        start = os.lseek(fd, 0, os.SEEK_CUR) if seekable else 0
        try:
            preface = await read_preface(fd, file, ctx.limits.stream_stall)
            config = _configuration(ctx, preface, path, config, name)
            name = name_of(config)
            ctx = replace(ctx, trace=ctx.trace.about(name))
            _check_free(ctx, name)
            end = end_of_stream(fd, start) if seekable else 0
        except NotAStreamError as error:
            raise SaveFileError(error.advice(file, "restore")) from error
        except (DecodeError, EOFError) as error:
            ctx.trace.event("failure", reason=str(error), **why(error)._asdict())
            raise SaveFileError(f"{path} is not a whole save file of xl: {error}") from error
        incoming = name + INCOMING
        if problem := descriptors.why_not() or ctx.host.why_not_create(config):
            raise SaveFileError(f"cannot restore {name!r} from {path}: {problem}")
        journal = Journal.begin(
            ctx.host.state_dir,
            name,
            Role.RESTORE,
            domid=None,
            domain_name=incoming,
            peer=path,
            uuid=uuid_of(config),
        )
        try:
            result = await _restore_seen(ctx, name, restore_parameters(config, incoming, fd))
        except BaseException:
            journal.close()
            raise
        if result.rc or result.domid is None:
            problem = f"cannot restore {name!r} from {path}: {result.reason or rc_name(result.rc)}"
            if result.domid is not None:
                raise SaveFileError(
                    f"{problem}; a part of it is left: `xen-toolstack recover {name}`"
                )
            journal.close()
            nothing = "; nothing of it is left here" if result.rc == Error.ABORTED else ""
            raise SaveFileError(f"{problem}{nothing}")
        journal.promise(Promise.GO_RECEIVED)
        try:
            ctx.host.rename(result.domid, name)
            if not leave_paused:
                ctx.host.unpause(result.domid)
        except OSError as error:
            ctx.trace.event("failure", reason=message_of(error), **why(error)._asdict())
            what = _not_started(ctx, result.domid, fd, journal, error)
            raise SaveFileError(
                f"cannot restore {name!r} from {path}: it cannot be started: "
                f"{message_of(error)}; {what}"
            ) from error
        journal.promise(Promise.STARTED)
        journal.close()
        if seekable:
            os.lseek(fd, end, os.SEEK_SET)
        state = "paused" if leave_paused else "running"
        return Restored(name, result.domid, state, result.statistics)


async def _restore_seen(ctx: Context, name: str, parameters: RestoreParameters) -> RestoreResult:
    """`restore_domain`, which other shells can see."""
    with controlled(ctx, ControlRole.RESTORE, name, step=lambda: "read the file") as seen:
        result = await restore_domain(seen, parameters)
        if seen.control is not None and result.rc:
            seen.control.ended = result.reason or rc_name(result.rc)
    return result


def _check_free(ctx: Context, name: str) -> None:
    """Raise FileExistsError if a name is taken."""
    for taken in {row.name for row in ctx.host.domains()} & {name, name + INCOMING}:
        raise FileExistsError(
            f"there is already a guest {taken!r} on this host; restore under another name (--name)"
        )


def _configuration(
    ctx: Context,
    preface: bytes | None,
    path: str,
    config: Mapping[str, Any] | None,
    name: str | None,
) -> dict[str, Any]:
    """The guest's configuration: `config`, or the one in the file's `preface`, with `name` if that
    is given. Raises DecodeError for a broken preface, SaveFileError if there is none."""
    if config is None:
        if preface is None:
            raise SaveFileError(
                f"{path} was saved by libvirt, without a configuration for libxl: use `virsh "
                "restore`, or give one with -C"
            )
        config = parse_config(preface)
    ours = name_of(dict(config))
    changed = {**config["c_info"], "name": name or ours}
    if changed["name"] != ours and uuid_of(dict(config)) in {
        row.uuid for row in ctx.host.domains()
    }:
        # The guest that was saved is still here: this is another one.
        changed["uuid"] = str(uuid.uuid4())
    return {**config, "c_info": changed}


def _not_started(ctx: Context, domid: int, fd: int, journal: Journal, error: OSError) -> str:
    """Destroy a restored guest that cannot be started, if it has certainly not run and its file
    still holds it; else leave it and its journal. Returns what was done, for people."""
    late = isinstance(error, TimeoutError)  # it may have heard, and start yet
    if late or not stat.S_ISREG(os.fstat(fd).st_mode) or state_of(ctx.host, domid) != "paused":
        return f"it is left here; run `xen-toolstack recover {journal.entry.name}`"
    ctx.host.destroy(domid)
    journal.close()
    return "its file still holds it"
