"""The back channel of postcopy, over a real socket."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine.fault_channel import FaultReader, FaultWriter, carry_at_once
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import RecordType, record_number
from xen_save_helper.ipc_schema.streams.records import encode_record

pytestmark = pytest.mark.usefixtures("no_leaks")


@contextmanager
def channel() -> Iterator[tuple[socket.socket, FaultReader]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, FaultReader(far.fileno(), 3)


@pytest.mark.parametrize("version", [2, 3])
def test_faults_and_the_last_word(version: int) -> None:
    near, far = socket.socketpair()
    with near, far, Abort(signals=frozenset()) as abort:
        writer = FaultWriter(near.fileno(), version, abort, 1.0)
        reader = FaultReader(far.fileno(), version)
        assert reader.take() == []
        writer.fault([5, 3])
        writer.fault([2**30])
        assert reader.take() == [5, 3, 2**30]
        writer.complete()
        near.send(b"the toolstack's own words")
        assert reader.take() == []
        assert reader.complete
        assert far.recv(100) == b"the toolstack's own words"


def test_a_page_that_the_guest_cannot_have_is_named_with_its_place() -> None:
    kind = record_number(RecordType.POSTCOPY_FAULT, 3)
    good = encode_record(kind, struct.pack("<IIQ", 1, 0, 9))
    bad = encode_record(kind, struct.pack("<IIQQ", 2, 0, 9, 10))
    near, far = socket.socketpair()
    with near, far:
        near.send(good + bad)
        with pytest.raises(DecodeError, match="pfn 0xa is above the guest's 0xa") as refused:
            FaultReader(far.fileno(), 3, 10).take()
    assert refused.value.offset == len(good) + len(bad) - 8


def test_what_follows_an_optional_record_must_be_zeros() -> None:
    good = encode_record(0x80001234, b"five!")
    with channel() as (near, reader):
        near.send(good + good[:-1] + b"\x01")
        with pytest.raises(DecodeError, match="back channel padding") as refused:
            reader.take()
    assert refused.value.offset == 2 * len(good) - 1


def test_a_record_in_single_bytes() -> None:
    record = encode_record(
        record_number(RecordType.POSTCOPY_FAULT, 3), struct.pack("<IIQ", 1, 0, 77)
    )
    with channel() as (near, reader):
        for octet in record[:-1]:
            near.send(bytes([octet]))
            assert reader.take() == []
        near.send(record[-1:])
        assert reader.take() == [77]


def test_the_channel_ends_too_early() -> None:
    with channel() as (near, reader):
        near.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError, match="before POSTCOPY_COMPLETE"):
            reader.take()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (encode_record(0x0, b""), "END may not come here"),
        (encode_record(0x40000016, bytes(8)), "POSTCOPY_COMPLETE of 8 bytes"),
        (encode_record(0x40000022, bytes(8)), "POSTCOPY_READY of 8 bytes"),
        (encode_record(0x40000015, bytes(8)), "0 pfns"),
        (encode_record(0x40000015, struct.pack("<II", 9, 0)), "do not hold 9 pfns"),
        (encode_record(0x40000015, bytes(4)), "too short"),
        (struct.pack("<II", 0x40000015, 1 << 26), "too long"),
        (struct.pack("<II", 0x40000015, 1 << 30), "want at most"),
        (struct.pack("<II", 0x7, 0), "SHARED_INFO may not come here"),
        (struct.pack("<II", 0x77777, 0), "unknown mandatory"),
    ],
)
def test_what_may_not_come(data: bytes, problem: str) -> None:
    with channel() as (near, reader):
        near.send(data)
        with pytest.raises(DecodeError, match=problem):
            reader.take()


def test_a_sender_that_takes_no_faults() -> None:
    near, far = socket.socketpair()
    with near, far, Abort(signals=frozenset()) as abort:
        writer = FaultWriter(near.fileno(), 3, abort, 0.05)
        near.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.sendall(bytes(1 << 24))
        near.setblocking(True)
        with pytest.raises(TimeoutError, match="no sign of life") as raised:
            writer.fault([1])
        assert raised.value.errno == errno.ETIMEDOUT


_SIOCOUTQNSD = 0x894B
"""The ioctl for the unsent bytes in a TCP socket (linux/sockios.h)."""


def test_a_tcp_socket_takes_little_ahead_of_a_faulted_page() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        carry_at_once(near.fileno())
        poll = select.poll()
        poll.register(near, select.POLLOUT)
        sent = 0
        while poll.poll(50):
            assert sent < 1 << 26
            sent += near.send(bytes(1 << 14))
        (unsent,) = struct.unpack("i", fcntl.ioctl(near, _SIOCOUTQNSD, bytes(4)))
        assert 0 < unsent <= (1 << 16) + (1 << 14)
        assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_pipes_and_unix_sockets_are_left_as_they_are() -> None:
    read, write = os.pipe()
    near, far = socket.socketpair()
    with near, far, open(read), open(write, "w"):
        for fd in (write, near.fileno()):
            carry_at_once(fd)
            os.write(fd, b"!")
