"""Faults in the records of a libxl stream, as whoever is at its other end sees them."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.ipc_schema.streams import libxl_stream
from xen_save_helper.ipc_schema.streams.libxl_stream import RecordType
from xen_save_helper.ipc_schema.streams.records import HEADER_SIZE, encode_record
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.aio.fd_io import UnexpectedEnd
from xen_save_helper.toolstack.faults.controller import ControllerFaults

LIMIT = 0.2
HEADER = libxl_stream.encode_header()
CONTEXT = encode_record(RecordType.LIBXC_CONTEXT, b"")
BODY = bytes(range(32))
EMULATOR = encode_record(RecordType.EMULATOR_CONTEXT, BODY)
END = encode_record(RecordType.END, b"")


def faults_of(plan: str, operation: Operation) -> ControllerFaults:
    faults = ControllerFaults(parse(f"{plan}; seed=1"), Trace("controller"))
    faults.begin(operation)
    return faults


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(20)
        yield ours, theirs


async def write(faults: ControllerFaults, fd: int, data: bytes) -> None:
    over: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
    faults.stream.start_write(fd, data, over.set_result, limit=LIMIT, what="record")
    if error := await over:
        raise error


def received(theirs: socket.socket) -> bytes:
    return b"".join(iter(lambda: theirs.recv(1 << 16), b""))


def written(plan: str) -> bytes:
    """What is in the stream when all of it was written."""

    async def run(fd: int) -> None:
        faults = faults_of(plan, Operation.SAVE)
        for data in (HEADER, CONTEXT, EMULATOR, END):
            await write(faults, fd, data)

    with pair() as (ours, theirs):
        asyncio.run(run(ours.fileno()))
        ours.close()
        return received(theirs)


@pytest.mark.parametrize(
    ("fault", "want"),
    [
        ("EMULATOR_CONTEXT:write=drop", HEADER + CONTEXT + END),
        ("EMULATOR_CONTEXT:write=duplicate", HEADER + CONTEXT + EMULATOR * 2 + END),
        ("EMULATOR_CONTEXT:write=reorder", HEADER + CONTEXT + END + EMULATOR),
        ("EMULATOR_CONTEXT:write=truncate", HEADER + CONTEXT + EMULATOR[:24] + END),
        ("LIBXC_CONTEXT:write=flip", HEADER + b"\0" + CONTEXT[1:] + EMULATOR + END),
        ("END:write=drop", HEADER + CONTEXT + EMULATOR),
        ("EMULATOR_CONTEXT:write=short-writes(3)", HEADER + CONTEXT + EMULATOR + END),
        ("EMULATOR_CONTEXT:write=trickle(1000)", HEADER + CONTEXT + EMULATOR + END),
        ("EMULATOR_CONTEXT:write=stall(0.01)", HEADER + CONTEXT + EMULATOR + END),
    ],
)
def test_what_stands_in_a_stream(fault: str, want: bytes) -> None:
    assert written(f"controller/record.libxl.{fault}") == want


@pytest.mark.parametrize(
    ("action", "number"),
    [
        ("epipe", errno.EPIPE),
        ("enospc", errno.ENOSPC),
        ("cut", errno.EPIPE),
        ("reset", errno.ECONNRESET),
        ("stall", errno.ETIMEDOUT),
    ],
)
def test_the_write_of_that_very_record_fails_and_nothing_of_it_passes(
    action: str, number: int
) -> None:
    plan = f"controller/record.libxl.END:write={action}"

    async def run(fd: int) -> None:
        faults = faults_of(plan, Operation.SAVE)
        await write(faults, fd, CONTEXT)
        await write(faults, fd, END)

    with pair() as (ours, theirs):
        with pytest.raises(OSError) as failed:  # noqa: PT011 - its errno is checked below
            asyncio.run(run(ours.fileno()))
        assert failed.value.errno == number
        if action not in {"cut", "reset"}:  # whose end the other side sees by itself
            ours.close()
        assert received(theirs) == CONTEXT


def test_of_a_write_that_waits_nothing_passes_once_it_is_cancelled() -> None:
    async def run(fd: int) -> None:
        faults = faults_of("controller/record.libxl.END:write=stall(0.05)", Operation.SAVE)
        later: list[Exception | None] = []
        faults.stream.start_write(fd, END, later.append, limit=LIMIT, what="END").cancel()
        await write(faults, fd, CONTEXT)
        await asyncio.sleep(0.1)  # longer than it would have waited
        assert later == []

    with pair() as (ours, theirs):
        asyncio.run(run(ours.fileno()))
        ours.close()
        assert received(theirs) == CONTEXT


def read(plan: str) -> list[bytes]:
    """The records that are read up to END, as their headers and bodies come."""

    async def run(fd: int) -> list[bytes]:
        faults = faults_of(plan, Operation.RESTORE)

        async def exactly(size: int) -> bytes:
            return await faults.stream.read_exactly(fd, size, limit=LIMIT, what="record")

        assert await exactly(len(HEADER)) == HEADER
        found = []
        while END not in found:
            header = await exactly(HEADER_SIZE)
            found.append(header + await exactly(int.from_bytes(header[4:], "little")))
        return found

    with pair() as (ours, theirs):
        theirs.sendall(HEADER + CONTEXT + EMULATOR + END)
        return asyncio.run(run(ours.fileno()))


@pytest.mark.parametrize(
    ("fault", "want"),
    [
        ("EMULATOR_CONTEXT:read=drop", [CONTEXT, END]),
        ("EMULATOR_CONTEXT:read=duplicate", [CONTEXT, EMULATOR, EMULATOR, END]),
        ("LIBXC_CONTEXT:read=reorder", [EMULATOR, CONTEXT, END]),
        ("EMULATOR_CONTEXT:read=short-writes(3)", [CONTEXT, EMULATOR, END]),
        ("EMULATOR_CONTEXT:read=stall(0.01)", [CONTEXT, EMULATOR, END]),
    ],
)
def test_what_a_reader_gets(fault: str, want: list[bytes]) -> None:
    assert read(f"controller/record.libxl.{fault}") == want


@pytest.mark.parametrize(
    ("action", "error"),
    [("cut", UnexpectedEnd), ("reset", ConnectionResetError), ("stall", TimeoutError)],
)
def test_a_read_fails_as_it_does_at_a_broken_stream(action: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        read(f"controller/record.libxl.EMULATOR_CONTEXT:read={action}")
