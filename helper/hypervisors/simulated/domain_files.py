"""The files of a host and its domains: which domains exist, by name and number."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.channel.waits import Patience

MARKER: Final = "xen-host.json"
FORMAT: Final = 1
DOMAINS: Final = "domains"
_MEMORY: Final = "memory"
_LACKS: Final = "lacks"
_LOCK: Final = "lock"
_SUSPEND_LOCK: Final = "suspend.lock"
_CONFIG: Final = "config.json"
_UNFINISHED: Final = ".new-"
_GOING: Final = ".gone-"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_POLL: Final = 0.005
"""Seconds between two attempts to take a lock; flock(2) has no time limit of its own."""
_TURN: Final = 8
"""Bytes in a lock's file that each holder makes different."""


def create_host(
    directory: str | os.PathLike[str], memory: int | None = None, lacks: Sequence[str] = ()
) -> None:
    """Make `directory` a host unless it is one, and its parents if needed. `memory` is what its
    guests may have, in bytes; None for as much as they ask for. Its CPU has every feature of
    `ipc_schema.streams.cpu_features` except those that it `lacks`. An existing host is left as it
    is.

    Raises FileExistsError for a directory with other things in it, NotADirectoryError for a file.
    """
    path = Path(directory)
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (path / MARKER).exists():
        check_host(path)
        return
    if any(path.iterdir()):
        raise FileExistsError(
            f"{path} is not empty and not a host: name a directory that is new or empty"
        )
    (path / DOMAINS).mkdir()
    (path / _LOCK).touch()
    bound = {} if memory is None else {_MEMORY: memory}
    _write_json(path / MARKER, {"format": FORMAT, "next_domid": 1, _LACKS: list(lacks), **bound})


def read_lacks(host: Path) -> list[str]:
    """The names of the CPU features that the host lacks."""
    lacks: list[str] = json.loads((host / MARKER).read_text()).get(_LACKS, [])
    return lacks


def lacks_around(directory: int) -> list[str]:
    """As `read_lacks`, given the descriptor of a domain's directory."""
    fd = os.open(f"../../{MARKER}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(fd) as file:
        lacks: list[str] = json.load(file).get(_LACKS, [])
    return lacks


def write_lacks(host: Path, lacks: Sequence[str]) -> None:
    """Set the CPU features that the host lacks. The host's lock must be held."""
    marker = json.loads((host / MARKER).read_text())
    _write_json(host / MARKER, {**marker, _LACKS: list(lacks)})


def read_memory(host: Path) -> int | None:
    """What the host's guests may have together, in bytes; None if there is no limit."""
    memory: int | None = json.loads((host / MARKER).read_text()).get(_MEMORY)
    return memory


def write_memory(host: Path, memory: int) -> None:
    """Set that limit. The host's lock must be held."""
    marker = json.loads((host / MARKER).read_text())
    _write_json(host / MARKER, {**marker, _MEMORY: memory})


def check_host(path: Path) -> None:
    """Raise FileNotFoundError or NotADirectoryError if `path` is not a host."""
    if not path.exists():
        raise FileNotFoundError(f"there is no host directory {path}")
    try:
        marker = json.loads((path / MARKER).read_text())
        known = marker["format"] == FORMAT
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        raise NotADirectoryError(
            f"{path} is not the directory of a simulated host (it has no proper {MARKER})"
        ) from error
    if not known:
        raise NotADirectoryError(f"{path} is a host of format {marker['format']}, not {FORMAT}")


def _write_json(path: Path, value: Any) -> None:
    """Replace the file atomically. Raises OSError that names it."""
    temporary = path.with_name(path.name + ".new")
    try:
        temporary.write_text(json.dumps(value, indent=1))
        temporary.rename(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # If a disk is full, nothing else would say which.
        error.filename = str(path)
        raise


@contextmanager
def _locked(fd: int, timeout: float, what: str) -> Iterator[None]:
    """Hold flock(2) on `fd`, which is closed at the end. Raises TimeoutError if one process holds
    it for longer than `timeout` seconds; however many take it before us, that is no sign of one
    that is stuck."""
    patience = Patience(timeout, time.monotonic())
    turn = os.pread(fd, _TURN, 0)
    with open(fd):
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                before, turn = turn, os.pread(fd, _TURN, 0)
                if turn != before:
                    patience.restart(time.monotonic())
                elif patience.look(time.monotonic()):
                    raise TimeoutError(f"could not take {what} within {timeout} s") from error
                time.sleep(_POLL)
        with suppress(OSError):  # no room: others only wait less patiently
            os.pwrite(fd, os.urandom(_TURN), 0)
        yield


def host_lock(host: Path, timeout: float) -> Any:
    """A context in which nobody else creates, renames or removes domains of the host."""
    fd = os.open(host / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return _locked(fd, timeout, f"the lock of host {host}")


def suspend_lock(directory: int, timeout: float) -> Any:
    """A context in which only we change requests to suspend (a xenstore transaction)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    fd = os.open(_SUSPEND_LOCK, flags, 0o600, dir_fd=directory)
    return _locked(fd, timeout, "the lock of the domain's suspend request")


@contextmanager
def try_suspend_lock(directory: int) -> Iterator[bool]:
    """Like `suspend_lock`, without waiting: yields whether it could be taken."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    with open(os.open(_SUSPEND_LOCK, flags, 0o600, dir_fd=directory)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def read_config(directory: int) -> dict[str, Any]:
    """The configuration of the domain in `directory`, a descriptor.

    Raises FileNotFoundError if the domain is gone.
    """
    fd = os.open(_CONFIG, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    with open(fd) as file:
        config: dict[str, Any] = json.load(file)
    return config


def write_config(domain: Path, config: Mapping[str, Any]) -> None:
    _write_json(config_path(domain), config)


def domain_path(host: Path, domid: int) -> Path:
    return host / DOMAINS / str(domid)


def config_path(domain: Path) -> Path:
    """The file with the configuration of the domain in `domain`; it is only ever replaced."""
    return domain / _CONFIG


def domids(host: Path) -> list[int]:
    """The domids of the host's domains, in order."""
    return sorted(int(path.name) for path in (host / DOMAINS).iterdir() if path.name.isdecimal())


def new_domain_directory(host: Path, config: Mapping[str, Any]) -> tuple[int, Path, int]:
    """A domid that was never used, and a directory with its configuration, not yet in place. The
    descriptor claims it: while that is open, the domain counts as one that is `being_made`, with or
    without the host's lock.

    The host's lock must be held.
    """
    clear_up(host)
    marker = json.loads((host / MARKER).read_text())
    domid: int = marker["next_domid"]
    _write_json(host / MARKER, {**marker, "next_domid": domid + 1})
    path = host / DOMAINS / f"{_UNFINISHED}{domid}"
    path.mkdir(mode=0o700)
    claim = os.open(path, _DIRECTORY)
    try:
        # At once, but for one that just looks whether it is claimed.
        fcntl.flock(claim, fcntl.LOCK_EX)
        write_config(path, config)
    except BaseException:
        os.close(claim)
        raise
    return domid, path, claim


def being_made(host: Path) -> dict[int, dict[str, Any]]:
    """The configurations of the domains that are not in place yet, by domid."""
    configs = {}
    for path in (host / DOMAINS).glob(_UNFINISHED + "*"):
        with suppress(FileNotFoundError):  # it is in place now, or was given up
            if _is_claimed(path):
                with directory_fd(path) as fd:
                    configs[int(path.name.removeprefix(_UNFINISHED))] = read_config(fd)
    return configs


def _is_claimed(path: Path) -> bool:
    """Whether a process that lives is making this domain. Raises FileNotFoundError."""
    with directory_fd(path) as fd:
        try:
            # Shared: others who look shall not take us for the maker.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def remove_domain(host: Path, domid: int) -> None:
    """Remove a domain's directory, atomically for others. The host's lock must be held.

    Raises FileNotFoundError if somebody else has removed it.
    """
    domain_path(host, domid).rename(host / DOMAINS / f"{_GOING}{domid}")
    clear_up(host)


def clear_up(host: Path) -> None:
    """Remove what processes left that died while creating or removing a domain. The host's lock
    must be held."""
    for prefix in (_UNFINISHED, _GOING):
        for path in (host / DOMAINS).glob(prefix + "*"):
            with suppress(FileNotFoundError):  # its maker has given it up
                if prefix == _GOING or not _is_claimed(path):
                    remove_tree(path)


def remove_tree(path: Path) -> None:
    """shutil.rmtree, for a directory that another process may remove at the same time."""
    # A helper removes nothing, and its start is faster without.
    import shutil

    def failed(_function: object, _name: str, info: Any) -> None:
        if not isinstance(info[1], FileNotFoundError):
            raise info[1]

    shutil.rmtree(path, onerror=failed)


@contextmanager
def directory_fd(path: Path) -> Iterator[int]:
    """A descriptor of a directory. Raises FileNotFoundError."""
    fd = os.open(path, _DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)
