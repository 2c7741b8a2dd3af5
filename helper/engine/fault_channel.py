"""The back channel of a postcopy migration: that the receiver is ready, pages that the guest waits
for, and that it has all.

POSTCOPY_FAULT has the shape of PAGE_DATA without contents; POSTCOPY_COMPLETE is the engine's last
record, after which the channel belongs to the toolstack again: not a byte more is read from it.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
from collections.abc import Sequence

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.engine.stream_io import wait_for
from xen_save_helper.ipc_schema.errors import DecodeError
from xen_save_helper.ipc_schema.streams.libxc_record_types import (
    RecordType,
    record_number,
    record_type,
)
from xen_save_helper.ipc_schema.streams.page_lists import (
    ENTRY_SIZE,
    MAX_PFN,
    decode_page_list_header,
    decode_pfns,
    encode_pfns,
)
from xen_save_helper.ipc_schema.streams.page_lists import HEADER_SIZE as LIST_HEADER_SIZE
from xen_save_helper.ipc_schema.streams.records import (
    HEADER_SIZE,
    check_padding,
    decode_record_header,
    encode_record_header,
    padding,
)

_WHAT = "back channel"
_MAX_BODY = LIST_HEADER_SIZE + ENTRY_SIZE * 65_536
"""More faults than any guest has vCPUs."""
_WITHOUT_BODY = (RecordType.POSTCOPY_COMPLETE, RecordType.POSTCOPY_READY)
_UNSENT = 1 << 16
"""Bytes that may wait in a TCP socket to be sent: as many as a pipe holds."""


def carry_at_once(fd: int) -> None:
    """Make writes to `fd` leave soon. A TCP socket would hold back the end of a page until the
    previous one is acknowledged, and queue megabytes of pages ahead of a faulted one; pipes and
    Unix sockets do neither."""
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.type == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)


class FaultReader:
    """The sender's end: takes records as they arrive, and never blocks. Record numbers are those of
    `version`; the guest's pfns are below `p2m_size`."""

    def __init__(self, fd: int, version: int, p2m_size: int = MAX_PFN + 1) -> None:
        self.fd = fd
        self.complete = False
        """POSTCOPY_COMPLETE has arrived: nothing more is read."""
        self.ready = 0
        """POSTCOPY_READY records that have arrived."""
        self._version = version
        self.p2m_size = p2m_size
        self._offset = 0
        self._buffer = bytearray()
        """Of the record that is coming, and perhaps the next one's header."""
        self._wanted = HEADER_SIZE
        self._kind: RecordType | None = None
        """That of the record whose header has come; None for an unknown optional one."""
        self._length = 0
        """That of its body."""
        self._end = 0
        """That of the record, with its padding; 0 until its header has come."""
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def take(self) -> list[int]:
        """The pfns of all POSTCOPY_FAULTs that have arrived.

        Raises DecodeError for any other record, and OSError from the channel, ECONNRESET at its
        end.
        """
        faults: list[int] = []
        while not self.complete and self._poll.poll(0):
            try:
                data = os.read(self.fd, self._wanted)
            except OSError as error:
                raise OSError(error.errno, f"{_WHAT}: {error.strerror}") from error
            if not data:
                raise OSError(
                    errno.ECONNRESET,
                    f"{_WHAT}: the receiver closed it before POSTCOPY_COMPLETE",
                )
            self._buffer += data
            self._parse(faults)
        return faults

    def _parse(self, faults: list[int]) -> None:
        """Add the pfns of the records that are complete. `_wanted` are then the bytes that may be
        read: to the end of this record, and the next record's header, since another one must
        follow."""
        buffer = self._buffer
        while len(buffer) >= self._end:
            if not self._end:
                if len(buffer) < HEADER_SIZE:
                    break
                self._read_header()
                continue
            if self._kind is RecordType.POSTCOPY_COMPLETE:
                self.complete = True
                return
            end = HEADER_SIZE + self._length
            if end < self._end:
                check_padding(bytes(buffer[end : self._end]), _WHAT, self._offset + end)
            if self._kind is RecordType.POSTCOPY_READY:
                self.ready += 1
            elif self._kind is not None:
                faults += self._decode(bytes(buffer[HEADER_SIZE:end]))
            del buffer[: self._end]
            self._offset += self._end
            self._end = 0
        self._wanted = (self._end + HEADER_SIZE) - len(buffer)

    def _read_header(self) -> None:
        number, self._length = decode_record_header(
            bytes(self._buffer[:HEADER_SIZE]), _WHAT, self._offset
        )
        kind = self._kind = record_type(number, self._version, self._offset)
        if kind in _WITHOUT_BODY:
            if self._length:
                problem = f"{kind.name} of {self._length} bytes"
                raise DecodeError(_WHAT, self._offset, problem)
        elif kind is not RecordType.POSTCOPY_FAULT and kind is not None:
            raise DecodeError(_WHAT, self._offset, f"{kind.name} may not come here")
        elif self._length > _MAX_BODY:
            problem = f"a body of {self._length} bytes is too long"
            raise DecodeError(_WHAT, self._offset, problem)
        self._end = HEADER_SIZE + self._length + padding(self._length)

    def _decode(self, body: bytes) -> list[int]:
        offset = self._offset + HEADER_SIZE
        what = f"{_WHAT}, POSTCOPY_FAULT"
        if len(body) < LIST_HEADER_SIZE:
            raise DecodeError(what, offset, f"{len(body)} bytes are too short for a page list")
        count = decode_page_list_header(body[:LIST_HEADER_SIZE], what, offset)
        if len(body) != LIST_HEADER_SIZE + count * ENTRY_SIZE:
            raise DecodeError(what, offset, f"{len(body)} bytes do not hold {count} pfns")
        offset += LIST_HEADER_SIZE
        pfns = decode_pfns(body[LIST_HEADER_SIZE:], what, offset)
        if max(pfns) >= self.p2m_size:
            index, pfn = next(one for one in enumerate(pfns) if one[1] >= self.p2m_size)
            problem = f"pfn {pfn:#x} is above the guest's {self.p2m_size:#x}"
            raise DecodeError(what, offset + index * ENTRY_SIZE, problem)
        return pfns


class FaultWriter:
    """The receiver's end. A write waits at most `stall_limit` seconds for the sender (0: for
    ever)."""

    def __init__(self, fd: int, version: int, abort: Abort, stall_limit: float) -> None:
        self._fd = fd
        self._version = version
        self._abort = abort
        self._stall_limit = stall_limit
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        carry_at_once(fd)

    def ready(self) -> None:
        """Send POSTCOPY_READY: what the last record which came ahead wants is done."""
        self._write(RecordType.POSTCOPY_READY, b"")

    def fault(self, pfns: Sequence[int]) -> None:
        """Send POSTCOPY_FAULT: a vCPU waits for each of `pfns`."""
        self._write(RecordType.POSTCOPY_FAULT, encode_pfns(pfns))

    def complete(self) -> None:
        """Send POSTCOPY_COMPLETE: no page is missing any more."""
        self._write(RecordType.POSTCOPY_COMPLETE, b"")

    def _write(self, kind: RecordType, body: bytes) -> None:
        data = encode_record_header(record_number(kind, self._version), len(body)) + body
        while data:
            if not self._poll.poll(0):
                wait_for(self._fd, select.POLLOUT, self._abort, self._stall_limit, _WHAT)
            try:
                data = data[os.write(self._fd, data[: select.PIPE_BUF]) :]
            except OSError as error:
                raise OSError(error.errno, f"{_WHAT}, {kind.name}: {error.strerror}") from error
