"""A libxc stream that is small and has something of everything, and relays around it."""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.faults.seams import of_helper
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.helper.job import Job
from xen_save_helper.ipc_schema.channel.helper_request import HelperRequest
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.faults.points import SIDES
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_number
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DomainHeader,
    ImageHeader,
    encode_domain_header,
    encode_image_header,
)
from xen_save_helper.ipc_schema.streams.records import encode_record
from xen_save_helper.ipc_schema.trace import Trace

LIMIT = 20.0
HEADERS = encode_image_header(ImageHeader(3)) + encode_domain_header(DomainHeader())


def record(kind: RecordType, body: bytes = b"") -> bytes:
    return encode_record(record_number(kind, 3), body)


def page(pfn: int) -> bytes:
    return bytes([pfn]) * 4096


def page_data(*pfns: int, broken: tuple[int, ...] = (), kind: str = "PAGE_DATA") -> bytes:
    """Pages whose octets all say their pfn; those in `broken` have no contents."""
    entries = [pfn | (0xD << 60 if pfn in broken else 0) for pfn in pfns]
    listed = struct.pack(f"<II{len(pfns)}Q", len(pfns), 0, *entries)
    contents = b"".join(page(pfn) for pfn in pfns if pfn not in broken)
    if kind == "POSTCOPY_PFNS":
        contents = b""
    return record(RecordType[kind], listed + contents)


STATIC = record(RecordType.STATIC_DATA_END)
PAGES = page_data(3, 4, 5, broken=(4,))
AGAIN = page_data(5)
CONTEXT = record(RecordType.HVM_CONTEXT, b"context")
END = record(RecordType.END)
STREAM = HEADERS + STATIC + PAGES + AGAIN + CONTEXT + END


def job(operation: Operation, io_fd: int, back_fd: int = -1) -> Job:
    request = HelperRequest(
        operation, 1, io_fd, back_fd, hypervisor="sim:/nonexistent", postcopy=True
    )
    return Job(request, stall_limit=LIMIT)


@dataclass
class Relayed:
    """`engine` is the descriptor that an engine works on, `real` the stream's own."""

    streams: Streams
    engine: int
    real: int


@contextmanager
def relay(plan: str, operation: Operation, path: Path) -> Iterator[Relayed]:
    """The file `path` in the place of the stream."""
    flags = os.O_RDONLY if operation is Operation.RESTORE else os.O_WRONLY | os.O_CREAT
    real = os.open(path, flags, 0o600)
    engine = os.dup(real)
    seeded = parse(plan).seeded()
    striker = of_helper(seeded, Trace("helper"), pipe=True, side=SIDES[operation])
    streams = Streams()
    try:
        with (
            Abort(signals=frozenset()) as abort,
            streams.relayed(striker, job(operation, engine), abort),
        ):
            yield Relayed(streams, engine, real)
    finally:
        os.close(engine)
        os.close(real)
        for thread in threading.enumerate():
            if thread.name.startswith("relay of"):
                thread.join(LIMIT)
                assert not thread.is_alive()


def written(plan: str, path: Path, stream: bytes = STREAM, at_once: int = 1 << 20) -> bytes:
    """What is in the file when an engine has written `stream` in pieces of `at_once`."""
    with relay(plan, Operation.SAVE, path) as ends:
        while stream:
            stream = stream[os.write(ends.engine, stream[:at_once]) :]
    return path.read_bytes()


def read(plan: str, path: Path, stream: bytes = STREAM) -> bytes:
    """What an engine reads up to the end, when `stream` is in the file."""
    path.write_bytes(stream)
    found = b""
    with relay(plan, Operation.RESTORE, path) as ends:
        while part := os.read(ends.engine, 100_000):
            found += part
    return found
