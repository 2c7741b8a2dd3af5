"""Journals: what each operation has promised about its guest, for `recover` to find after a crash.

A journal is a small JSON file in the host's state directory, one for each guest and end of an
operation. A promise is written down before it is made, atomically (temporary file, fsync, rename,
fsync of the directory), so the other side has never been promised more than the journal says.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.toolstack.operations.domain_lock import domain_lock
from xen_save_helper.toolstack.rules.cause import message_of

SUFFIX: Final = ".journal"
VERSION: Final = 1

_TEMPORARY: Final = ".journal-"
"""The prefix of a temporary file; the writer's pid, a hyphen and a unique part follow."""

_LOCK_LIMIT: Final = 10.0
"""Seconds to wait for other processes that begin or end an operation."""
_LOCK_POLL: Final = 0.005
"""Seconds between attempts: flock(2) has no time limit of its own."""


class Role(Enum):
    """The end of an operation that this host is."""

    SOURCE = "source"
    DESTINATION = "destination"
    SAVE = "save"
    RESTORE = "restore"


class Promise(Enum):
    """How far an operation has committed itself; each role has its own promises."""

    BEGUN = "begun"
    """SOURCE, SAVE: nothing is promised, and the guest is ours; again so once the destination has
    given it back."""
    GO = "go"
    """SOURCE: the destination may have been told to start the guest."""
    TRANSITION = "transition"
    """SOURCE: the postcopy transition may have reached the destination."""
    PAGES = "pages"
    """SOURCE: the destination has reported that the guest runs there; its last pages are still
    here, with a page server that sends them."""
    DONE = "done"
    """SOURCE: the destination has reported that the guest runs there. SAVE: the file is whole, and
    the guest was to end. What is left here must be destroyed."""
    RECEIVING = "receiving"
    """DESTINATION, RESTORE: nothing is promised; our copy is partial or was given up."""
    GO_RECEIVED = "go-received"
    """DESTINATION: the sender has let the guest go. RESTORE: the file has been read. The guest must
    be started here."""
    RESUMED = "resumed"
    """DESTINATION: the guest may have run here with part of its memory (postcopy)."""
    STARTED = "started"
    """DESTINATION: the guest has all its memory and was started."""


PROMISES: Final = {
    Role.SOURCE: (Promise.BEGUN, Promise.GO, Promise.TRANSITION, Promise.PAGES, Promise.DONE),
    Role.DESTINATION: (
        Promise.RECEIVING,
        Promise.GO_RECEIVED,
        Promise.RESUMED,
        Promise.STARTED,
    ),
    Role.SAVE: (Promise.BEGUN, Promise.DONE),
    Role.RESTORE: (Promise.RECEIVING, Promise.GO_RECEIVED, Promise.STARTED),
}
"""The promises of each role; it begins with the first."""


class JournalError(OSError):
    """A journal that forbids an operation, or cannot be read or written; the text says what to
    do."""


@dataclass(frozen=True)
class ProcessIdentity:
    """A process; start time and boot distinguish it from a later one with the same pid."""

    pid: int
    start_time: int
    boot_id: str

    @classmethod
    def current(cls) -> ProcessIdentity:
        return cls(os.getpid(), _start_time(os.getpid()) or 0, _boot_id())

    def alive(self) -> bool:
        return self.boot_id == _boot_id() and _start_time(self.pid) == self.start_time


@dataclass(frozen=True)
class JournalEntry:
    """The contents of a journal. `peer` is the other side: the argument of `--to`, or the file.
    `partial` is a temporary file, which `recover` removes. `uuid` tells the guest from another one
    that was given the same name."""

    name: str
    role: Role
    promise: Promise
    domid: int | None
    domain_name: str
    peer: str
    process: ProcessIdentity
    partial: str | None = None
    uuid: str | None = None

    @property
    def copy_names(self) -> tuple[str, ...]:
        """The names that a received domain may have; none for the sending roles, which know the
        domid."""
        if self.role not in {Role.DESTINATION, Role.RESTORE}:
            return ()
        if self.promise in {Promise.GO_RECEIVED, Promise.STARTED}:
            return (self.domain_name, self.name)
        return (self.domain_name,)

    def may_be(self, uuid: str | None) -> bool:
        """Whether a domain with this uuid can be the journal's."""
        return self.uuid is None or uuid is None or self.uuid == uuid


class Journal:
    """The journal of a running operation, from `begin` to `close`."""

    def __init__(self, path: Path, entry: JournalEntry) -> None:
        self._path = path
        self.entry = entry

    @classmethod
    def begin(
        cls,
        state_dir: Path,
        name: str,
        role: Role,
        *,
        domid: int | None,
        domain_name: str,
        peer: str,
        partial: str | None = None,
        uuid: str | None = None,
    ) -> Journal:
        """Start a journal with the role's first promise. Raises JournalError if there is one for
        the same guest or domain."""
        promise, process = PROMISES[role][0], ProcessIdentity.current()
        entry = JournalEntry(name, role, promise, domid, domain_name, peer, process, partial, uuid)
        path = _path(state_dir, name, role)
        state_dir.mkdir(parents=True, exist_ok=True)
        with _locked(state_dir):
            sweep(state_dir)
            for standing in entries(state_dir):
                same = standing.name == name and standing.role is role
                if same or _same_domain(standing, entry):
                    raise _in_the_way(standing)
            _write(path, entry)
        return cls(path, entry)

    def promise(self, promise: Promise) -> None:
        """Write down a promise that is about to be made. Raises ValueError if the role has no such
        promise, OSError if it cannot be written: then it must not be made."""
        if promise not in PROMISES[self.entry.role]:
            raise ValueError(f"{self.entry.role} does not promise {promise}")
        entry = replace(self.entry, promise=promise)
        _write(self._path, entry)
        self.entry = entry

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other operations off the domain while the context lasts, those without a journal
        included. Closes the journal and raises JournalError if another has the domain."""
        assert self.entry.domid is not None, "the operation begins with a domain"
        with ExitStack() as held:
            try:
                held.enter_context(
                    domain_lock(self._path.parent, self.entry.domid, self.entry.role.value)
                )
            except OSError as error:
                self.close()
                raise JournalError(f"guest {self.entry.name!r}: {message_of(error)}") from error
            yield

    def close(self) -> None:
        """Remove the journal: nothing is left to do here."""
        remove(self._path.parent, self.entry)


def entries(state_dir: Path) -> list[JournalEntry]:
    """The journals of a host, sorted by name. Raises JournalError if one cannot be read."""
    if not state_dir.is_dir():
        return []
    found: list[JournalEntry] = []
    for path in sorted(state_dir.glob(f"*{SUFFIX}")):
        try:
            found.append(_read(path))
        except FileNotFoundError:
            continue  # it was closed just now
    return found


def remove(state_dir: Path, entry: JournalEntry) -> None:
    """Remove a journal, if it still exists."""
    _path(state_dir, entry.name, entry.role).unlink(missing_ok=True)
    _sync_directory(state_dir)


def pages_lost(state_dir: Path, domid: int) -> bool:
    """Note that the last pages of a domain, which a dead controller has left to a page server, will
    not come: a person must decide about what is left here. Returns whether there is a controller
    that lives, and has yet to hear of that. Raises JournalError, OSError."""
    awaited = False
    if not state_dir.is_dir():
        return awaited
    with _locked(state_dir):
        for entry in entries(state_dir):
            if (entry.role, entry.domid) != (Role.SOURCE, domid):
                continue
            if entry.process.alive():
                awaited = True
            elif entry.promise is Promise.PAGES:
                path = _path(state_dir, entry.name, entry.role)
                _write(path, replace(entry, promise=Promise.TRANSITION))
    return awaited


@contextmanager
def taken_over(state_dir: Path, entry: JournalEntry) -> Iterator[None]:
    """Make a dead process's journal this process's while the context lasts.

    Raises JournalError if the journal has changed or another process has taken it over.
    """
    path = _path(state_dir, entry.name, entry.role)
    ours = replace(entry, process=ProcessIdentity.current())
    with _locked(state_dir):
        _expect(path, entry)
        _write(path, ours)
    try:
        yield
    finally:
        with _locked(state_dir):
            if path.exists():
                _write(path, entry)


def _expect(path: Path, entry: JournalEntry) -> None:
    """Raise JournalError unless the journal at `path` is `entry`."""
    try:
        standing = _read(path)
    except FileNotFoundError:
        standing = None
    if standing == entry:
        return
    if standing is not None and standing.process.alive():
        raise _in_the_way(standing)
    raise JournalError(f"guest {entry.name!r}: its journal has just changed; try again")


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Keep others from beginning, taking over or giving back an operation. Raises JournalError."""
    patience = Patience(_LOCK_LIMIT, time.monotonic())
    descriptor = os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if patience.look(time.monotonic()):
                    raise JournalError(
                        f"another process has held {state_dir} for over {_LOCK_LIMIT:g} s; end it"
                    ) from None
            time.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


def sweep(state_dir: Path) -> None:
    """Remove the temporary files of writers that were killed."""
    for path in state_dir.glob(f"{_TEMPORARY}*"):
        pid = path.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdecimal() and _start_time(int(pid)) is None:
            path.unlink(missing_ok=True)


def _path(state_dir: Path, name: str, role: Role) -> Path:
    return state_dir / f"{quote(name, safe='')}.{role.value}{SUFFIX}"


def _same_domain(standing: JournalEntry, new: JournalEntry) -> bool:
    if new.domid is None:
        return False  # it does not exist yet
    if standing.domid is not None:
        return standing.domid == new.domid
    return new.domain_name in standing.copy_names and standing.may_be(new.uuid)


def _in_the_way(entry: JournalEntry) -> JournalError:
    if entry.process.alive():
        return JournalError(
            f"guest {entry.name!r} is in the middle of an operation ({entry.role.value}, "
            f"process {entry.process.pid})"
        )
    if entry.promise is Promise.STARTED:
        return JournalError(
            f"guest {entry.name!r} was received, but is still called {entry.domain_name!r}; run "
            f"`xen-toolstack recover {entry.name}` first"
        )
    return JournalError(
        f"guest {entry.name!r} was left in the middle of an operation ({entry.role.value}) by a "
        f"process that has ended; run `xen-toolstack recover {entry.name}` first"
    )


def _read(path: Path) -> JournalEntry:
    text = path.read_bytes()
    try:
        fields: dict[str, Any] = json.loads(text)
        if fields.pop("version") != VERSION:
            raise ValueError("another version")
        entry = JournalEntry(
            **{
                **fields,
                "role": Role(fields["role"]),
                "promise": Promise(fields["promise"]),
                "process": ProcessIdentity(**fields["process"]),
            }
        )
    except (ValueError, KeyError, TypeError) as error:
        raise JournalError(
            f"{path} is not a journal of this version ({error}); look at the guest at both ends, "
            "then remove the file"
        ) from error
    return entry


def _write(path: Path, entry: JournalEntry) -> None:
    """Write the entry to `path` and to the disk, whole or not at all. Raises JournalError,
    OSError."""
    fields = asdict(entry) | {
        "version": VERSION,
        "role": entry.role.value,
        "promise": entry.promise.value,
    }
    descriptor, temporary = tempfile.mkstemp(prefix=f"{_TEMPORARY}{os.getpid()}-", dir=path.parent)
    try:
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(fields, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as error:
            raise JournalError(
                error.errno, f"cannot write the journal: {error.strerror}", str(path)
            ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None if there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in {"Z", "X"} else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
