"""Saves a guest into a file: `xl save`."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from xen_save_helper.helper.hypervisors import XEN
from xen_save_helper.ipc_schema.causes import SYSTEM
from xen_save_helper.ipc_schema.channel.messages import XentoollogLevel
from xen_save_helper.ipc_schema.control import Role as ControlRole
from xen_save_helper.ipc_schema.errors import rc_name
from xen_save_helper.ipc_schema.streams import xl_header
from xen_save_helper.toolstack.aio import descriptors, fd_io, file_argument
from xen_save_helper.toolstack.cancellation import end_in_order, not_told
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import Statistics
from xen_save_helper.toolstack.operations.domain_save import save_domain, suspend_parameters
from xen_save_helper.toolstack.operations.save import SaveParameters, SaveResult
from xen_save_helper.toolstack.operations.settle import (
    DEAD,
    check_can_suspend,
    heal,
    resume_for_sure,
    row_of_domain,
    state_of,
)
from xen_save_helper.toolstack.rules import arguments
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.xl.controlled import controlled
from xen_save_helper.toolstack.xl.journal import Journal, Promise, Role
from xen_save_helper.toolstack.xl.outcome import told_once, where_guest_is
from xen_save_helper.toolstack.xl.save_target import SaveTarget, save_target

_PER_PAGE: Final = 4096 + 9
"""Bytes of a page in the stream, with its entry in the list of pfns and its share of a header."""
_BESIDE_PAGES: Final = 1 << 20
"""Bytes for everything else in the stream: headers, contexts, policies."""
_ABSENT_PFNS: Final = 8 << 20
"""Bytes for the pfns without a page, which libxc lists as well: a PVH or HVM guest can have up to
2^20 of them below 4 GiB."""


class SaveFileError(OSError):
    """A save or restore failed; the text says what has become of the guest."""


@dataclass(frozen=True)
class Saved:
    """`state`: the guest's state now, None if it was destroyed and lives in the file."""

    name: str
    file: str
    state: str | None
    statistics: Statistics | None


async def save(
    ctx: Context,
    domid: int,
    file: Path | int,
    *,
    checkpoint: bool = False,
    leave_paused: bool = False,
    bandwidth: int = 0,
    sparse: bool = False,
    on_end: Callable[[Saved], object] = not_told,
) -> Saved:
    """Save a domain into `file`, a path or a descriptor open for writing, then destroy it;
    `checkpoint` lets it run on, `leave_paused` leaves it here, paused; `bandwidth` and `sparse`
    are those of `domain_suspend`.

    Raises TypeError and ValueError for invalid arguments, ProcessLookupError if there is no such
    domain, GuestStateError for a guest that cannot suspend (paused, crashed, …): nothing is touched
    then. Raises SaveFileError, JournalError and OSError if the save fails: the guest then runs on
    here, and the file at a path is what it was before, unless only the journal could not be
    written.

    A cancellation ends the save in the same way, and is then raised with the error as its cause; if
    it came too late, `on_end` is called first, with what would have been returned.
    """
    arguments.instance("ctx", ctx, Context)
    arguments.domain_number(domid)
    arguments.bandwidth(bandwidth)
    work = _save(
        ctx,
        domid,
        descriptors.file(file),
        checkpoint=checkpoint,
        leave_paused=leave_paused,
        bandwidth=bandwidth,
        sparse=arguments.instance("sparse", sparse, bool),
    )
    return await end_in_order(work, on_end)


async def _save(
    ctx: Context,
    domid: int,
    file: Path | int,
    *,
    checkpoint: bool,
    leave_paused: bool,
    bandwidth: int,
    sparse: bool,
) -> Saved:
    """Save without `end_in_order`: a cancellation ends the save as a SaveFileError."""
    row = row_of_domain(ctx.host, domid)
    name = row.name
    ctx = replace(ctx, trace=ctx.trace.about(name))
    config = json.dumps(ctx.host.config(domid)).encode() + b"\0"
    try:
        target = save_target(file)
    except OSError as error:
        raise SaveFileError(
            f"cannot save {name!r} to {file_argument.name_of(file)}: {message_of(error)}"
        ) from error
    journal = Journal.begin(
        ctx.host.state_dir,
        name,
        Role.SAVE,
        domid=domid,
        domain_name=name,
        peer=target.name,
        partial=str(target.partial) if target.partial else None,
        uuid=row.uuid,
    )
    keep = checkpoint or leave_paused
    with journal.alone():
        try:
            check_can_suspend(ctx.host, domid)
        except OSError:
            journal.close()
            raise
        how = partial(suspend_parameters, flags=0, bandwidth=bandwidth, sparse=sparse)
        with controlled(ctx, ControlRole.SAVE, name, domid, step=lambda: "write the file") as seen:
            result = await _write(seen, domid, target, config, journal, how, keep=keep)
        if not keep:
            with contextlib.suppress(ProcessLookupError):  # somebody else has destroyed it
                ctx.host.destroy(domid)
            journal.close()
            return Saved(name, target.name, None, result.statistics)
        if leave_paused:
            with contextlib.suppress(ProcessLookupError):
                ctx.host.pause(domid)
        state = _run_on(ctx, domid, journal, may_suspend=True)
    return Saved(name, target.name, state, result.statistics)


async def _write(
    ctx: Context,
    domid: int,
    target: SaveTarget,
    config: bytes,
    journal: Journal,
    how: Callable[[Context, int, int], SaveParameters],
    *,
    keep: bool,
) -> SaveResult:
    """Save the domain, and leave it suspended. `keep`: it is not destroyed afterwards. Raises as
    `save`."""
    name, path = journal.entry.name, journal.entry.peer
    may_suspend = False
    try:
        with target:
            await target.open(_room_for(ctx, domid), ctx.limits.handshake)
            await fd_io.write_all(
                target.fd,
                xl_header.encode_header(config),
                limit=ctx.limits.stream_stall,
                what=path,
            )
            result = await save_domain(ctx, how(ctx, domid, target.fd))
            may_suspend = result.suspended
            if result.rc:
                raise SaveFileError(result.reason or rc_name(result.rc))
            await target.finish(ctx.limits.stream_stall)
        if not keep:
            journal.promise(Promise.DONE)
    except BaseException as error:
        _take_back(journal)
        state = _run_on(ctx, domid, journal, may_suspend=may_suspend)
        if isinstance(error, OSError | EOFError):
            said = message_of(error)
        elif isinstance(error, asyncio.CancelledError):
            said = "the save was cancelled"
        else:
            raise
        what = told_once(said, where_guest_is(state, "here"))
        raise SaveFileError(f"cannot save {name!r} to {path}: {what}") from error
    return result


def _room_for(ctx: Context, domid: int) -> int:
    """Bytes that a save of the domain takes at most, with every page that it has."""
    domain = ctx.host.domain(domid)
    try:
        absent = _ABSENT_PFNS if ctx.hypervisor == XEN else 0
        return domain.getinfo().nr_pages * _PER_PAGE + absent + _BESIDE_PAGES
    finally:
        domain.close()


def _take_back(journal: Journal) -> None:
    """Take back any promise, one whose writing just failed included. A journal that cannot be
    written does not keep the guest from running on: `recover` destroys none that runs."""
    with contextlib.suppress(OSError):
        journal.promise(Promise.BEGUN)


def _run_on(ctx: Context, domid: int, journal: Journal, *, may_suspend: bool) -> str | None:
    """Let the guest run here again, then close the journal. Returns its state, None if it is
    gone."""
    try:
        if state_of(ctx.host, domid) not in DEAD:
            problem = heal(ctx.host, domid)
            if problem:
                ctx.say(XentoollogLevel.ERROR, "libxl", f"domain {domid}: {problem}")
                ctx.trace.event("failure", domid=domid, reason=problem, **SYSTEM._asdict())
        watch = ctx.limits.suspend if may_suspend else 0.0
        state = resume_for_sure(ctx.host, domid, watch=watch)
    except ProcessLookupError:
        state = None
    journal.close()
    return state
