"""What a pager leaves on record, for another one to take its place if it dies.

A file beside those of its control socket, which its user alone may read: it has the link's keys.
One line of JSON, and then an octet for each pfn of the domain, 1 if the page was still to come when
the guest was let run.
"""

from __future__ import annotations

import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from xen_save_helper.helper.engine.stream_io import StreamInput
from xen_save_helper.helper.hypervisors.interface import Bitmap
from xen_save_helper.ipc_schema.control import PAGES

_COUNT: Final = struct.Struct("<Q")


class Record(NamedTuple):
    """The domain, where its page server is reached, and by which keys (Z85)."""

    hypervisor: str
    domid: int
    address: str
    port: int
    server_key: str
    client_key: str
    client_secret: str


def path_of(directory: str, name: str) -> Path:
    """`name` is the pager's, in its directory of control sockets."""
    return Path(directory, name + PAGES)


def write(path: Path, record: Record, missing: Bitmap) -> None:
    """Raises OSError."""
    fresh = path.with_name(f".{path.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    with open(os.open(fresh, flags, 0o600), "wb") as file:
        file.write(json.dumps(record._asdict()).encode() + b"\n")
        file.write(missing)
    fresh.rename(path)


def read(path: Path) -> tuple[Record, Bitmap]:
    """Raises OSError, ValueError for anything else."""
    head, _, missing = path.read_bytes().partition(b"\n")
    try:
        return Record(**json.loads(head)), Bitmap(missing)
    except TypeError as error:
        raise ValueError(f"{path}: no record of a pager: {error}") from None


def say_missing(fd: int, missing: Bitmap) -> None:
    """Tell a page server what is missing: a u64, and an octet for each of so many pfns."""
    with open(fd, "wb", closefd=False) as file:
        file.write(_COUNT.pack(len(missing)) + missing)


def read_missing(stream: StreamInput) -> Bitmap:
    """What `say_missing` has written. Raises OSError, StreamEndError."""
    what = "pages that another pager lacks"
    (count,) = _COUNT.unpack(stream.read(_COUNT.size, what))
    return Bitmap(stream.read(count, what))


def moved(path: Path, address: str, port: int) -> None:
    """The page server is reached at another address. Raises OSError, ValueError."""
    record, missing = read(path)
    write(path, record._replace(address=address, port=port), missing)


def remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
