"""Asking running operations, and processes that have outlived their `xl`
(`ipc_schema.control`)."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

from xen_save_helper.ipc_schema.control import (
    IDENTITY,
    LONGEST_LINE,
    OUTLIVING,
    PAGES,
    SOCKET,
    Ask,
    Identity,
    PostcopyStatus,
    Role,
    decode_line,
    encode_line,
    is_identity,
    left_by_the_dead,
)

_ANSWER_SECONDS: Final = 5.0


class EndedError(Exception):
    """The process has ended; `lost` says why without having done its work, empty if it has."""

    def __init__(self, lost: str) -> None:
        super().__init__(lost)
        self.lost = lost


class RefusedError(OSError):
    """The process cannot do what was asked; `why` is its own account."""

    def __init__(self, process: Identity, why: str) -> None:
        super().__init__(f"{process.name}: {why}")
        self.why = why


def processes(directory: Path, roles: Collection[Role] = OUTLIVING) -> list[Identity]:
    """Those that work, and those that have ended without having done their work, by name. Raises
    OSError, ValueError for a file of theirs that cannot be read."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = []
    for name in sorted(names):
        if not is_identity(name):
            continue
        with suppress(FileNotFoundError):  # it has just ended
            try:
                process = Identity.decode((directory / name).read_bytes())
                if process.role in roles:
                    found.append(process)
            except ValueError as error:
                raise ValueError(f"{directory / name}: {error}") from None
    return found


def process_of(directory: Path, name: str) -> Identity | None:
    """The one of this name; None if it has ended, and has done its work. Raises OSError,
    ValueError."""
    try:
        return Identity.decode((directory / (name + IDENTITY)).read_bytes())
    except FileNotFoundError:
        return None


def operations(directory: Path) -> list[Identity]:
    """Those that are running, by name. What others have left that were killed is removed. Raises as
    `processes`."""
    for file in left_by_the_dead(os.listdir(directory) if directory.is_dir() else ()):
        (directory / file).unlink(missing_ok=True)
    running = []
    for process in processes(directory, frozenset(Role) - OUTLIVING):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(_ANSWER_SECONDS)
            try:
                connect(sock, directory, process)
            except (ConnectionError, FileNotFoundError):
                forget(directory, process)
                continue
            except TimeoutError:
                pass  # it is there, but does not answer
        running.append(process)
    return running


def status(directory: Path, process: Identity) -> PostcopyStatus:
    """Raises EndedError, OSError, ValueError."""
    return PostcopyStatus.decode(ask(directory, process, Ask.STATUS))


def ask(
    directory: Path, process: Identity, what: Ask, seconds: float = _ANSWER_SECONDS, **fields: Any
) -> dict[str, Any]:
    """Its response. Raises EndedError if it has ended, TimeoutError, RefusedError for what it
    cannot do, OSError, ValueError for what is no response."""
    with _Conversation(directory, process, seconds) as talk:
        talk.say(what, **fields)
        return talk.hear()


class _Conversation:
    """Requests and their responses, in `seconds`. Raises as `ask`."""

    def __init__(self, directory: Path, process: Identity, seconds: float) -> None:
        self._directory = directory
        self._process = process
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._came = b""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def __enter__(self) -> Self:
        self._sock.settimeout(self._seconds)
        try:
            with self._told():
                connect(self._sock, self._directory, self._process)
        except BaseException:
            self._sock.close()
            raise
        return self

    def __exit__(self, *_exception: object) -> None:
        self._sock.close()

    def say(self, what: Ask, **fields: Any) -> None:
        # One that has no room for another has said so and hung up: that is heard.
        with self._told(), suppress(BrokenPipeError):
            self._sock.sendall(encode_line({"ask": what, **fields}))

    def hear(self) -> dict[str, Any]:
        while b"\n" not in self._came:
            self._sock.settimeout(max(0.001, self._deadline - time.monotonic()))
            with self._told():
                part = self._sock.recv(LONGEST_LINE)
            if not part:
                raise how_ended(self._directory, self._process)
            self._came += part
        line, _, self._came = self._came.partition(b"\n")
        response = decode_line(line)
        if "error" in response:
            raise RefusedError(self._process, str(response["error"]))
        return response

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Translate what can go wrong."""
        try:
            yield
        except TimeoutError:
            name = self._process.name
            raise TimeoutError(f"{name}: no answer within {self._seconds:g} s") from None
        except (ConnectionError, FileNotFoundError):
            raise how_ended(self._directory, self._process) from None


def cancel(directory: Path, process: Identity, seconds: float) -> str:
    """Have an operation end, and wait for that: why its work is not done, "" if it is. Raises as
    `ask`."""
    with _Conversation(directory, process, seconds) as talk:
        talk.say(Ask.CANCEL)
        talk.say(Ask.WAIT)
        talk.hear()
        return str(talk.hear()["ended"])


def wait(directory: Path, process: Identity, seconds: float) -> dict[str, Any]:
    """Until it has done its work: its last status, empty if it had ended before. Raises EndedError
    if it ends otherwise, TimeoutError."""
    try:
        told = ask(directory, process, Ask.WAIT, seconds)
    except EndedError as error:
        told = {"ended": error.lost, "status": {}}
    if told["ended"]:
        raise EndedError(str(told["ended"]))
    return dict(told["status"])


def forget(directory: Path, process: Identity) -> None:
    """Remove what a process that has ended has left behind. Raises OSError."""
    for suffix in (SOCKET, IDENTITY, PAGES):
        (directory / (process.name + suffix)).unlink(missing_ok=True)


def connect(sock: socket.socket, directory: Path, process: Identity) -> None:
    """Raises OSError."""
    # Through the directory's descriptor: a socket's whole path may be too long.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{process.name}{SOCKET}")
    except BlockingIOError:
        # Its queue is full.
        raise TimeoutError(f"{process.name}: it takes no more connections") from None
    finally:
        os.close(fd)


def how_ended(directory: Path, process: Identity) -> EndedError:
    """For a process that is not there, or has hung up."""
    try:
        left = Identity.decode((directory / (process.name + IDENTITY)).read_bytes())
    except FileNotFoundError:
        return EndedError("")
    return EndedError(left.ended or "its process has died, without a word")
