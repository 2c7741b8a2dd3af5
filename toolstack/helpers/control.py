"""Asking processes that have outlived their `xl` (`ipc_schema.control`)."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from xen_save_helper.ipc_schema.control import (
    IDENTITY,
    LONGEST_LINE,
    SOCKET,
    Ask,
    Identity,
    PostcopyStatus,
    decode_line,
    encode_line,
)

_ANSWER_SECONDS: Final = 5.0


class EndedError(Exception):
    """The process has ended; `lost` says why without having done its work, empty if it has."""

    def __init__(self, lost: str) -> None:
        super().__init__(lost)
        self.lost = lost


def processes(directory: Path) -> list[Identity]:
    """Those that work, and those that have ended without having done their work, by name. Raises
    OSError, ValueError for a file of theirs that cannot be read."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    found = []
    for name in sorted(names):
        if name.startswith(".") or not name.endswith(IDENTITY):
            continue
        with suppress(FileNotFoundError):  # it has just ended
            try:
                found.append(Identity.decode((directory / name).read_bytes()))
            except ValueError as error:
                raise ValueError(f"{directory / name}: {error}") from None
    return found


def status(directory: Path, process: Identity) -> PostcopyStatus:
    """Raises EndedError, OSError, ValueError."""
    return PostcopyStatus.decode(ask(directory, process, Ask.STATUS))


def ask(
    directory: Path, process: Identity, what: Ask, seconds: float = _ANSWER_SECONDS, **fields: Any
) -> dict[str, Any]:
    """Its response. Raises EndedError if it has ended, TimeoutError, OSError with its words for
    what it cannot do, ValueError for what is no response."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        deadline = time.monotonic() + seconds
        sock.settimeout(seconds)
        answer = b""
        try:
            connect(sock, directory, process)
            sock.sendall(encode_line({"ask": what, **fields}))
            while not answer.endswith(b"\n"):
                sock.settimeout(max(0.001, deadline - time.monotonic()))
                part = sock.recv(LONGEST_LINE)
                if not part:
                    raise how_ended(directory, process)
                answer += part
        except TimeoutError:
            raise TimeoutError(f"{process.name}: no answer within {seconds:g} s") from None
        except (ConnectionError, FileNotFoundError):
            raise how_ended(directory, process) from None
    response = decode_line(answer)
    if "error" in response:
        raise OSError(f"{process.name}: {response['error']}")
    return response


def wait(directory: Path, process: Identity, seconds: float) -> None:
    """Until it has done its work. Raises EndedError if it ends otherwise, TimeoutError."""
    try:
        ended = str(ask(directory, process, Ask.WAIT, seconds)["ended"])
    except EndedError as error:
        ended = error.lost
    if ended:
        raise EndedError(ended)


def forget(directory: Path, process: Identity) -> None:
    """Remove what a process that has ended has left behind. Raises OSError."""
    for suffix in (SOCKET, IDENTITY):
        (directory / (process.name + suffix)).unlink(missing_ok=True)


def connect(sock: socket.socket, directory: Path, process: Identity) -> None:
    """Raises OSError."""
    # Through the directory's descriptor: a socket's whole path may be too long.
    fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{fd}/{process.name}{SOCKET}")
    finally:
        os.close(fd)


def how_ended(directory: Path, process: Identity) -> EndedError:
    """For a process that is not there, or has hung up."""
    try:
        left = Identity.decode((directory / (process.name + IDENTITY)).read_bytes())
    except FileNotFoundError:
        return EndedError("")
    return EndedError(left.ended or "its process has died, without a word")
