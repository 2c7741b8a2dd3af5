"""What faults make of a record that passes."""

from __future__ import annotations

import errno
from random import Random
from typing import Final

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.outlet import Outlet
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.streams.records import HEADER, MAX_LENGTH

_NO_SUCH_TYPE: Final = 0x7FFFFF00
"""An unknown type that nobody may skip: bit 31 is clear."""
_MOST_KEPT: Final = 32 << 20
"""Bytes of a record that can be sent twice or later."""


class RecordFaults:
    """The faults in the records of one stream, which pass `outlet`."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._twice: bytearray | None = None
        self._later: bytearray | None = None
        self._kept = b""

    def begin(self, firings: list[Firing], header: bytes, size: int) -> bytes:
        """A record of `size` bytes, header and padding included, is about to pass. Returns the
        header that passes in the place of `header`."""
        for firing in firings:
            header = self._one(firing, header, size)
        return header

    def end(self) -> None:
        """The record has passed."""
        self._outlet.diverts.clear()
        if self._twice is not None:
            self._outlet.put(bytes(self._twice))
        earlier, self._kept = self._kept, bytes(self._later or b"")
        self._twice = self._later = None
        if earlier:
            self._outlet.put(earlier)

    def finish(self) -> None:
        """There are no more records."""
        if self._kept:
            self._outlet.put(self._kept)

    def _one(self, firing: Firing, header: bytes, size: int) -> bytes:
        kind = firing.fault.action.kind
        number, length = HEADER.unpack(header)
        diverts = self._outlet.diverts
        if kind is actions.WRONG_NUMBER:
            return HEADER.pack(_NO_SUCH_TYPE, length)
        if kind is actions.OVERSIZE:
            return HEADER.pack(number, MAX_LENGTH + 8)
        if kind is actions.FLIP:
            self._outlet.do(firing)
        elif kind is actions.DROP:
            diverts.append(lambda _data: b"")
        elif kind is actions.TRUNCATE:
            half = len(header) + (size - len(header)) // 2 if size > len(header) else size // 2
            diverts.append(_First(half))
        elif kind is actions.GARBAGE:
            if size == len(header):
                return firing.random.randbytes(size)
            diverts.append(_Garbage(len(header), firing.random))
        else:
            if size > _MOST_KEPT:
                raise OSError(
                    errno.ENOBUFS, f"'{firing.fault}': {size} bytes, and {_MOST_KEPT} can be kept"
                )
            kept = bytearray()
            diverts.append(_Keep(kept, passes=kind is actions.DUPLICATE))
            if kind is actions.DUPLICATE:
                self._twice = kept
            else:
                self._later = kept
        return header


class _First:
    """Lets the first `left` bytes through."""

    def __init__(self, left: int) -> None:
        self._left = left

    def __call__(self, data: bytes) -> bytes:
        data, self._left = data[: self._left], max(0, self._left - len(data))
        return data


class _Garbage:
    """Lets `left` bytes through, and replaces the others by random ones."""

    def __init__(self, left: int, random: Random) -> None:
        self._first = _First(left)
        self._random = random

    def __call__(self, data: bytes) -> bytes:
        first = self._first(data)
        return first + self._random.randbytes(len(data) - len(first))


class _Keep:
    def __init__(self, kept: bytearray, *, passes: bool) -> None:
        self._kept = kept
        self._passes = passes

    def __call__(self, data: bytes) -> bytes:
        self._kept += data
        return data if self._passes else b""
