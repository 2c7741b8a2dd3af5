"""Save a guest into a file and restore it from one: `xl save`, `xl restore`.

A file appears under its name only when it is whole: it is written beside it, brought to the disk
and renamed over it. What cannot be renamed over (a pipe, a device) is written straight on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import secrets
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from ipc_schema import xl_header
from ipc_schema.errors import DecodeError, Error, rc_name
from ipc_schema.messages import XentoollogLevel
from toolstack import arguments, fd_io
from toolstack.cancellation import end_in_order, not_told
from toolstack.context import Context
from toolstack.descriptors import why_no_descriptors
from toolstack.domain_restore import restore_domain, restore_parameters
from toolstack.domain_save import SaveResult, save_domain, suspend_parameters
from toolstack.failure import message_of
from toolstack.handshake import INCOMING
from toolstack.journal import Journal, Promise, Role
from toolstack.patience import patience
from toolstack.receive import name_of, parse_config, uuid_of
from toolstack.save_helper import Statistics
from toolstack.settle import (
    DEAD,
    check_can_suspend,
    heal,
    resume_for_sure,
    row_of_domain,
    state_of,
)

OPEN_POLL: Final = 0.05
SPECIAL: Final = (Path("/dev"), Path("/proc"))


class SaveFileError(OSError):
    """A save or restore that failed; the text says what has become of the guest."""


@dataclass(frozen=True)
class Saved:
    """`state`: the guest's state now, None where it was destroyed (its place is the file)."""

    name: str
    file: str
    state: str | None
    statistics: Statistics | None


@dataclass(frozen=True)
class Restored:
    name: str
    domid: int
    state: str
    statistics: Statistics | None


async def save(
    ctx: Context,
    domid: int,
    path: Path,
    *,
    checkpoint: bool = False,
    leave_paused: bool = False,
    bandwidth: int = 0,
    on_end: Callable[[Saved], object] = not_told,
) -> Saved:
    """Save a domain into `path`, then destroy it; `checkpoint` lets it run on, `leave_paused`
    leaves it here, paused.

    Raises TypeError and ValueError for arguments that cannot be. Raises ProcessLookupError where
    there is no such domain, GuestStateError for a guest that cannot suspend (paused, crashed, …):
    nothing is touched then. Raises SaveFileError, JournalError, OSError: then the guest runs on
    here, and `path` is what it was before, unless it is the journal that cannot say that the file
    is whole.

    A cancellation ends it in the same way, and is raised then, with the error as its cause; where
    it came too late, `on_end` has been called with what would have been returned.
    """
    arguments.instance("ctx", ctx, Context)
    arguments.domain_number(domid)
    arguments.bandwidth(bandwidth)
    work = _save(
        ctx,
        domid,
        Path(path),
        checkpoint=checkpoint,
        leave_paused=leave_paused,
        bandwidth=bandwidth,
    )
    return await end_in_order(work, on_end)


async def _save(
    ctx: Context, domid: int, path: Path, *, checkpoint: bool, leave_paused: bool, bandwidth: int
) -> Saved:
    """A cancellation ends the save, and is gone."""
    row = row_of_domain(ctx.host, domid)
    name = row.name
    config = json.dumps(ctx.host.config(domid)).encode() + b"\0"
    target = _Target(path)
    journal = Journal.begin(
        ctx.host.state_dir,
        name,
        Role.SAVE,
        domid=domid,
        domain_name=name,
        peer=str(path),
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
        result = await _write(ctx, domid, target, config, journal, bandwidth, keep=keep)
        if not keep:
            ctx.host.destroy(domid)
            journal.close()
            return Saved(name, str(path), None, result.statistics)
        if leave_paused:
            ctx.host.pause(domid)
        state = _run_on(ctx, domid, journal, may_suspend=True)
    return Saved(name, str(path), state, result.statistics)


async def _write(
    ctx: Context,
    domid: int,
    target: _Target,
    config: bytes,
    journal: Journal,
    bandwidth: int,
    *,
    keep: bool,
) -> SaveResult:
    """Save the domain; it is suspended then. `keep`: it is not to end. Raises as `save`."""
    name, path = journal.entry.name, journal.entry.peer
    may_suspend = False
    try:
        with target:
            await target.open(ctx.limits.handshake)
            await fd_io.write_all(
                target.fd,
                xl_header.encode_header(config),
                limit=ctx.limits.stream_stall,
                what=path,
            )
            result = await save_domain(ctx, suspend_parameters(ctx, domid, target.fd, 0, bandwidth))
            may_suspend = result.suspended
            if result.rc:
                raise SaveFileError(_reason(result))
            target.keep()
        if not keep:
            journal.promise(Promise.DONE)
    except BaseException as error:
        _take_back(journal)
        state = _run_on(ctx, domid, journal, may_suspend=may_suspend)
        if isinstance(error, OSError | EOFError):
            raise SaveFileError(
                f"cannot save {name!r} to {path}: {message_of(error)}; the guest "
                + ("has crashed" if state == "crashed" else f"is {state} here")
            ) from error
        raise
    return result


def _reason(result: SaveResult) -> str:
    why = result.reason or rc_name(result.rc)
    if result.rc == Error.GUEST_TIMEDOUT:
        # libxl's code for whatever fails before the guest has answered, too: the cause is not it.
        return f"the guest did not suspend ({rc_name(result.rc)}): {why}"
    return why


def _take_back(journal: Journal) -> None:
    """No promise stands any more, also where it was just written and then failed. What cannot be
    said does not keep the guest from running on: `recover` destroys none that runs."""
    with contextlib.suppress(OSError):
        journal.promise(Promise.BEGUN)


def _run_on(ctx: Context, domid: int, journal: Journal, *, may_suspend: bool) -> str:
    """Bring the guest to run here again; the journal ends once it does."""
    if all(row.domid != domid or row.state.value not in DEAD for row in ctx.host.domains()):
        problem = heal(ctx.host, domid)
        if problem:
            ctx.say(XentoollogLevel.ERROR, "libxl", f"domain {domid}: {problem}")
            ctx.trace.event("failure", domid=domid, reason=problem)
    state = resume_for_sure(ctx.host, domid, watch=ctx.limits.suspend if may_suspend else 0.0)
    journal.close()
    return state


class _Target:
    """Where a save is written; nothing is touched before `open`. `partial` is the temporary file,
    None for what is written straight on. As a context, closes, and takes away what is not whole."""

    def __init__(self, path: Path) -> None:
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            mode = stat.S_IFREG
        special = any(path.absolute().is_relative_to(directory) for directory in SPECIAL)
        self.fd = -1
        self.path = path
        self.partial: Path | None = None
        if stat.S_ISREG(mode) and not special:
            self.path = path.resolve()
            unique = f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
            self.partial = self.path.with_name(unique)

    async def open(self, limit: float) -> None:
        """Raises OSError; TimeoutError for a FIFO that nobody reads from within `limit`."""
        if self.partial is None:
            self.fd = await _open_existing(self.path, limit)
        else:
            self.fd = os.open(self.partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        if self.partial is not None:
            self.partial.unlink(missing_ok=True)

    def keep(self) -> None:
        """The file is whole: bring it to the disk and give it its name."""
        if self.partial is None:
            return
        os.fsync(self.fd)
        self.partial.replace(self.path)
        self.partial = None
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


async def _open_existing(path: Path, limit: float) -> int:
    """Open for writing; a FIFO waits for its reader. The descriptor blocks in the end."""
    try:
        async with patience(limit):
            while True:
                try:
                    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
                except OSError as error:
                    if error.errno != errno.ENXIO:
                        raise
                    await asyncio.sleep(OPEN_POLL)
                else:
                    os.set_blocking(fd, True)
                    return fd
    except TimeoutError:
        raise TimeoutError(f"{path}: nobody reads from it within {limit:g} s") from None


async def restore(
    ctx: Context,
    path: Path,
    *,
    leave_paused: bool = False,
    on_end: Callable[[Restored], object] = not_told,
) -> Restored:
    """Restore a guest from `path` and let it run. Until it is whole it has another name
    (`handshake.INCOMING`): a copy that was given up is told by it from any other guest.

    Raises SaveFileError, also for what is no whole xl save file (a regular file is looked through
    before anything is built), FileExistsError, OSError: then nothing of it is left here, or the
    journal stands, by which `recover` ends it. TypeError for arguments that cannot be.

    A cancellation ends it in the same way, and is raised as that of `save` is.
    """
    arguments.instance("ctx", ctx, Context)
    return await end_in_order(_restore(ctx, Path(path), leave_paused=leave_paused), on_end)


async def _restore(ctx: Context, path: Path, *, leave_paused: bool) -> Restored:
    """A cancellation ends the restore, and is gone."""
    async with _opened(path, ctx.limits.handshake) as fd:
        config = await _read_config(fd, path, ctx.limits.stream_stall)
        name = name_of(config)
        incoming = name + INCOMING
        for taken in {row.name for row in ctx.host.domains()} & {name, incoming}:
            raise FileExistsError(f"there is a guest {taken!r} on this host already")
        if problem := why_no_descriptors() or ctx.host.why_not_create(config):
            raise SaveFileError(f"cannot restore {name!r} from {path}: {problem}")
        journal = Journal.begin(
            ctx.host.state_dir,
            name,
            Role.RESTORE,
            domid=None,
            domain_name=incoming,
            peer=str(path),
            uuid=uuid_of(config),
        )
        try:
            result = await restore_domain(ctx, restore_parameters(config, incoming, fd))
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
            raise SaveFileError(problem)
        journal.promise(Promise.GO_RECEIVED)
        try:
            ctx.host.rename(result.domid, name)
            if not leave_paused:
                ctx.host.unpause(result.domid)
        except OSError as error:
            what = _not_started(ctx, result.domid, fd, journal, error)
            raise SaveFileError(
                f"cannot restore {name!r} from {path}: it cannot be started: "
                f"{message_of(error)}; {what}"
            ) from error
        journal.promise(Promise.STARTED)
        journal.close()
        state = "paused" if leave_paused else "running"
        return Restored(name, result.domid, state, result.statistics)


def _not_started(ctx: Context, domid: int, fd: int, journal: Journal, error: OSError) -> str:
    """What has become of a restored guest that cannot be started, in words. It goes where it has
    surely not run and its file has it still; or its journal stands."""
    late = isinstance(error, TimeoutError)  # it may have heard, and start yet
    if late or not stat.S_ISREG(os.fstat(fd).st_mode) or state_of(ctx.host, domid) != "paused":
        return f"it is left here: `xen-toolstack recover {journal.entry.name}`"
    ctx.host.destroy(domid)
    journal.close()
    return "its file still has it"


@contextlib.asynccontextmanager
async def _opened(path: Path, limit: float) -> AsyncIterator[int]:
    """Open a save file for reading; a regular one must be whole. Raises OSError; TimeoutError for
    a FIFO that nobody writes to within `limit`. The descriptor blocks."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if stat.S_ISFIFO(mode):
            await _readable(fd, path, limit)
        if stat.S_ISREG(mode):
            _check_whole(path)
        os.set_blocking(fd, True)
        yield fd
    finally:
        os.close(fd)


async def _readable(fd: int, path: Path, limit: float) -> None:
    """Wait for the writer of a FIFO: for its first octet, or its end."""
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(fd, came.set)
    try:
        async with patience(limit):
            await came.wait()
    except TimeoutError:
        raise TimeoutError(f"{path}: nobody writes to it within {limit:g} s") from None
    finally:
        loop.remove_reader(fd)


def _check_whole(path: Path) -> None:
    # It brings numpy, and no save needs it.
    from toolstack.inspect import inspect

    with path.open("rb") as file:
        try:
            for _ in inspect(file):
                pass
        except DecodeError as error:
            raise SaveFileError(f"{path} is no whole save file: {error}") from error


async def _read_config(fd: int, path: Path, limit: float) -> dict[str, Any]:
    try:
        header = await fd_io.read_exactly(fd, xl_header.HEADER_SIZE, limit=limit, what=str(path))
        decoded = xl_header.decode_header(header)
        data = await fd_io.read_exactly(fd, decoded.optional_data_len, limit=limit, what=str(path))
        return parse_config(xl_header.decode_optional_data(decoded, data))
    except (DecodeError, EOFError) as error:
        raise SaveFileError(f"{path} is no save file of xl's: {error}") from error
