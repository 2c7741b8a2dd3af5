"""What becomes of a stream of octets with faults at places in it and in its records, without I/O.

Relays in threads (`relay`) and the writer and reader of libxl's records ask it, each with its own
way to pass octets on and to wait.
"""

from __future__ import annotations

import errno
import heapq
import os
from collections.abc import Iterator
from typing import Final

from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.mangles import ON_RECORD, mangled
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults import actions

Step = tuple[bytes, float]
"""What passes next, and the seconds until anything else does."""

FOR_EVER: Final = float(1 << 31)
"""Seconds, more than a plan can say."""
_PIECES_A_SECOND: Final = 50
"""Pieces of a stream that trickles."""
_MOST_KEPT: Final = 32 << 20
"""Bytes of a record that can be changed."""


class BrokenError(Exception):
    """The stream ends here. `errnoval` is what its writer or reader sees, 0 for end of file;
    `shut`: the other side sees the end, `both`: in the other direction as well."""

    def __init__(
        self, errnoval: int, reason: str = "", *, shut: bool = False, both: bool = False
    ) -> None:
        super().__init__(reason or os.strerror(errnoval))
        self.errnoval = errnoval
        self.shut = shut
        self.both = both


class Octets:
    """A stream as it comes in, and the steps in which it passes. Each step has to be taken before
    the next is asked for, since faults may strike in between.

    `offset` counts the bytes as they came, whatever happens to them; `most` is how many may pass at
    once, 0 for any number.
    """

    def __init__(self, striker: Striker, *, writing: bool = True) -> None:
        self.offset = 0
        self.most = 0
        self._rate = 0
        self._flip = 0
        self._striker = striker
        self._writing = writing
        self._places: list[tuple[int, str, int | None]] = []
        self._changes: list[Firing] = []
        """What is to become of the record that is passing; it is kept as long as there are any."""
        self._kept = bytearray()
        self._later: list[bytes] = []
        """Records that are to follow the next one."""

    def place(self, offset: int, point: str, at: int | None) -> None:
        """The point (see `Injector.passes`) is passed before the byte at `offset`."""
        heapq.heappush(self._places, (offset, point, at))

    def passes(self, data: bytes) -> Iterator[Step]:
        """`data` has come. Raises BrokenError, and OSError for a record that is too long to be
        kept."""
        end = self.offset + len(data)
        while self._places and self._places[0][0] < end:
            offset, point, at = heapq.heappop(self._places)
            before = max(0, offset - self.offset)
            yield from self._pass(data[:before])
            data = data[before:]
            yield from self.strike(point, at)
        yield from self._pass(data)

    def strike(self, point: str, at: int | None = None) -> Iterator[Step]:
        """A point is passed here, as that of a record before its first byte. Raises
        BrokenError."""
        for firing in self._striker.strike(point, at):
            kind, value = firing.fault.action
            if kind in actions.RECORD:
                self._changes.append(firing)
            elif kind is actions.FLIP:
                self._flip ^= 1 << int(value or 0)
            elif kind is actions.STALL:
                yield b"", FOR_EVER if value is None else float(value)
            elif kind is actions.TRICKLE:
                self._rate = int(value or 1)
            elif kind is actions.SHORT_WRITES:
                self.most = int(value or 1)
            else:
                raise self._end(firing)

    def end_record(self, *, last: bool = False) -> Iterator[Step]:
        """A record has passed, or what there is of it, and one that was to be reordered follows it;
        after the `last` one, it does so itself."""
        records, self._later = self._later, []
        if changes := self._changes:
            made = [bytes(self._kept)]
            self._changes = []
            self._kept.clear()
            waits = False
            for firing in changes:
                if firing.fault.action.kind is actions.REORDER:
                    waits = True
                else:
                    made = mangled(ON_RECORD, made, firing)
            if waits and not last:
                self._later = made
            else:
                records = records + made if waits else made + records
        for record in records:
            yield from self._pieces(record)

    def _end(self, firing: Firing) -> BrokenError:
        kind, reason = firing.fault.action.kind, firing.reason
        if kind is actions.CUT:
            return BrokenError(errno.EPIPE if self._writing else 0, reason, shut=True)
        if kind is actions.RESET:
            return BrokenError(errno.ECONNRESET, reason, shut=True, both=True)
        return BrokenError(errno.EPIPE if kind is actions.EPIPE else errno.ENOSPC, reason)

    def _pass(self, data: bytes) -> Iterator[Step]:
        if not data:
            return
        self.offset += len(data)
        if self._flip:
            data = bytes((data[0] ^ self._flip,)) + data[1:]
            self._flip = 0
        if not self._changes:
            yield from self._pieces(data)
        elif len(self._kept) + len(data) > _MOST_KEPT:
            raise OSError(errno.ENOBUFS, f"'{self._changes[0].fault}': over {_MOST_KEPT} bytes")
        else:
            self._kept += data

    def _pieces(self, data: bytes) -> Iterator[Step]:
        size = self.most or len(data)
        if self._rate:
            size = min(size, max(1, self._rate // _PIECES_A_SECOND))
        for start in range(0, len(data), size or 1):
            piece = data[start : start + size]
            yield piece, len(piece) / self._rate if self._rate else 0.0
