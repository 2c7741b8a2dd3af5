"""The outgoing end of a stream, with faults at places in it and in its records."""

from __future__ import annotations

import errno
import heapq
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from xen_save_helper.helper.faults.injector import Firing, Strike
from xen_save_helper.helper.faults.mangles import ON_RECORD, mangled
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.actions import Action

_PIECES_A_SECOND: Final = 50
"""Pieces of a stream that trickles."""
_MOST_KEPT: Final = 32 << 20
"""Bytes of a record that can be changed."""


class BrokenError(Exception):
    """A fault ends the stream. `errnoval` is what its writer or reader sees, 0 for end of file;
    `both`: the other direction ends as well."""

    def __init__(self, errnoval: int, *, shut: bool, both: bool = False) -> None:
        super().__init__(errno.errorcode.get(errnoval, "end"))
        self.errnoval = errnoval
        self.shut = shut
        self.both = both


def ending(action: Action, *, writing: bool) -> BrokenError:
    """How an action that ends a stream looks to its writer or reader."""
    kind = action.kind
    if kind is actions.CUT:
        return BrokenError(errno.EPIPE if writing else 0, shut=True)
    if kind is actions.RESET:
        return BrokenError(errno.ECONNRESET, shut=True, both=True)
    return BrokenError(_ERRNOS[kind.name], shut=False)


class Pace:
    """The size of the pieces in which a stream passes, and its rate."""

    def __init__(self) -> None:
        self.most = 0
        """Bytes that may pass at once, 0 for any number."""
        self._rate = 0

    @property
    def free(self) -> bool:
        """Whether it was never changed."""
        return not (self.most or self._rate)

    def take(self, action: Action) -> bool:
        """Take an action that changes the pace. Returns whether it is one."""
        if action.kind is actions.TRICKLE:
            self._rate = int(action.value or 1)
        elif action.kind is actions.SHORT_WRITES:
            self.most = int(action.value or 1)
        else:
            return False
        return True

    def pieces(self, data: bytes) -> Iterator[tuple[bytes, float]]:
        """Yield each piece and the seconds to wait after it."""
        step = self.most or len(data)
        if self._rate:
            step = min(step, max(1, self._rate // _PIECES_A_SECOND))
        for start in range(0, len(data), step or 1):
            piece = data[start : start + step]
            yield piece, len(piece) / self._rate if self._rate else 0.0


class Outlet:
    """Passes bytes on to `write`, which takes all of them; `passed` is called after each piece of a
    stream with short writes.

    `offset` counts the bytes of the stream as it came, whatever happens to them.
    """

    def __init__(
        self,
        strike: Strike,
        write: Callable[[bytes], None],
        passed: Callable[[], None] = lambda: None,
        *,
        writing: bool,
    ) -> None:
        self.offset = 0
        self.pace = Pace()
        self._strike = strike
        self._write = write
        self._passed = passed
        self._writing = writing
        self._places: list[tuple[int, str, int | None]] = []
        self._flip = 0
        self._firings: Sequence[Firing] = ()
        self._kept = bytearray()
        self._later: list[bytes] = []

    def begin_record(self, firings: Sequence[Firing]) -> None:
        """A record is about to pass. What `firings`, of `fault_actions.RECORD`, make of it passes
        in its place once all of it is there."""
        self._firings = firings

    def end_record(self) -> None:
        """The record has passed, and one that was to be reordered follows it."""
        later, self._later = self._later, []
        if self._firings:
            records = [bytes(self._kept)]
            for firing in self._firings:
                if firing.fault.action.kind is not actions.REORDER:
                    records = mangled(ON_RECORD, records, firing)
            if any(firing.fault.action.kind is actions.REORDER for firing in self._firings):
                self._later = records
            else:
                later = records + later
        self._firings = ()
        self._kept.clear()
        for record in later:
            self._put(record)

    def end_records(self) -> None:
        """There are no more records."""
        for record in self._later:
            self._put(record)
        self._later = []

    def place(self, offset: int, point: str, at: int | None) -> None:
        """The point (see `Injector.passes`) is passed before the byte at `offset`."""
        heapq.heappush(self._places, (offset, point, at))

    def pass_on(self, data: bytes) -> None:
        """Raises BrokenError, and OSError of `write`."""
        end = self.offset + len(data)
        while self._places and self._places[0][0] < end:
            offset, point, at = heapq.heappop(self._places)
            before = max(0, offset - self.offset)
            self._pass(data[:before])
            data = data[before:]
            for firing in self._strike(point, at):
                self.do(firing)
        self._pass(data)

    def do(self, firing: Firing) -> None:
        """Do one of `fault_actions.STREAM`. Raises BrokenError for those that end the stream."""
        action = firing.fault.action
        kind, value = action
        if kind is actions.FLIP:
            self._flip ^= 1 << int(value or 0)
        elif kind is actions.STALL:
            threading.Event().wait(None if value is None else float(value))
        elif not self.pace.take(action):
            raise ending(action, writing=self._writing)

    def _put(self, data: bytes) -> None:
        for piece, pause in self.pace.pieces(data):
            self._write(piece)
            if self.pace.most:
                self._passed()
            if pause:
                time.sleep(pause)

    def _pass(self, data: bytes) -> None:
        if not data:
            return
        self.offset += len(data)
        if self._flip:
            data = bytes((data[0] ^ self._flip,)) + data[1:]
            self._flip = 0
        if not self._firings:
            self._put(data)
        elif len(self._kept) + len(data) > _MOST_KEPT:
            raise OSError(errno.ENOBUFS, f"'{self._firings[0].fault}': over {_MOST_KEPT} bytes")
        else:
            self._kept += data


_ERRNOS: Final = {actions.EPIPE.name: errno.EPIPE, actions.ENOSPC.name: errno.ENOSPC}
