"""A thread between the engine and a stream that was inherited, which sees the records pass.

The engine, ours or libxc, reads or writes one end of a socket pair, which has the stream's number.
Memory is bounded. Bytes that belong to the toolstack are never read from the stream: neither beyond
END nor beyond a record whose callback reads the stream.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
import termios
import threading
import time
import traceback
from array import array
from typing import Final, NamedTuple, NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.descriptors import fails_to_write, shut
from xen_save_helper.helper.faults.octets import BrokenError
from xen_save_helper.helper.faults.relay import AT_ONCE, Relay
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.helper.hypervisors.interface import PAGE_SIZE
from xen_save_helper.helper.job import EXIT_FAILED
from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.ipc_schema.faults.points import FIRST_BYTE, Moment, record_point
from xen_save_helper.ipc_schema.streams.libxc_record_types import VERSIONS, RecordType, record_types
from xen_save_helper.ipc_schema.streams.libxc_stream import (
    DOMAIN_HEADER_SIZE,
    IMAGE_HEADER,
    IMAGE_HEADER_SIZE,
)
from xen_save_helper.ipc_schema.streams.page_lists import ENTRY_SIZE, MAX_PFN
from xen_save_helper.ipc_schema.streams.page_types import TYPE_SHIFT, has_contents
from xen_save_helper.ipc_schema.streams.records import HEADER, HEADER_SIZE, padding

_LISTS: Final = frozenset(
    {RecordType.PAGE_DATA, RecordType.POSTCOPY_PFNS, RecordType.POSTCOPY_PAGE_DATA}
)
_LAST: Final = frozenset({RecordType.END, RecordType.POSTCOPY_COMPLETE})
CALLBACKS: Final = {
    RecordType.POSTCOPY_TRANSITION: "postcopy_transition",
    RecordType.CHECKPOINT: "checkpoint",
}
"""Records after which the stream is the toolstack's until the callback is answered."""
_LOOK_UP_SECONDS: Final = 0.05


class Ends(NamedTuple):
    """`engine` is the number that the engine knows, `ours` the other end of its socket pair, `real`
    the stream itself. The relay closes the latter two."""

    engine: int
    ours: socket.socket
    real: int

    def again(self) -> Ends:
        """The same ends for another relay."""
        return Ends(self.engine, self.ours.dup(), os.dup(self.real))


class _EndedError(Exception):
    """The source of the bytes has ended."""


class StreamRelay(Relay):
    """`name` is that of the stream's points: `stream` or `back`. `writing`: the engine writes.

    A fault that ends a back channel also requests the `abort`: its writer may have nothing left to
    write, and wait for the other side.

    A reading relay waits until its `turn` is set.
    """

    def __init__(
        self, name: str, ends: Ends, abort: Abort, striker: Striker, *, writing: bool
    ) -> None:
        ours, real = ends.ours.fileno(), ends.real
        source, sink = (ours, real) if writing else (real, ours)
        super().__init__(name, source, sink, striker, writing=writing)
        self.writing = writing
        self.turn = threading.Event()
        self._abort = abort
        self._ends = ends
        self._moment = Moment.WRITE if writing else Moment.READ
        self._at_rest = threading.Condition()
        self._idle = False
        self._ended = False
        self._errnoval = 0
        self._pfns: frozenset[int] = frozenset()
        if name == "stream":
            self._octets.place(0, FIRST_BYTE, None)
            self._pfns = frozenset(striker.places("page"))

    def settle(self, limit: float) -> None:
        """Wait until all that the engine has written has passed. Raises OSError for what its next
        write would say: the stream's failure, the abort's reason, ETIMEDOUT after `limit` seconds
        (0: never)."""
        patience = Patience(limit, time.monotonic())
        with self._at_rest:
            while not self._ended and not (
                self._idle and _count(self._source, termios.FIONREAD) == 0
            ):
                self._at_rest.wait(_LOOK_UP_SECONDS)
                if patience.look(time.monotonic()):
                    self._abort.request(errno.ETIMEDOUT, f"the stream stands still for {limit} s")
                self._abort.check()
        if self._errnoval:
            raise OSError(self._errnoval, f"{self.point}: {os.strerror(self._errnoval)}")

    def run(self) -> None:
        try:
            if not self.writing:
                self.turn.wait()
            try:
                self._walk()
            except _EndedError:
                if not self.writing:
                    self._ends.ours.shutdown(socket.SHUT_WR)
            except BrokenError as broken:
                self._break(broken)
            self._rests(ended=True)
            self._ends.ours.close()
            os.close(self._ends.real)
        except BaseException:
            # A plan is carried out completely or not at all.
            print(f"{CONTEXT}: a fault cannot be carried out", file=sys.stderr)
            traceback.print_exc()
            os._exit(EXIT_FAILED)

    def _rests(self, *, ended: bool = False) -> None:
        """All that came has passed."""
        with self._at_rest:
            self._idle = True
            self._ended = self._ended or ended
            self._at_rest.notify_all()

    # The records

    def _walk(self) -> NoReturn:
        if self.point == "stream":
            image = self._exactly(IMAGE_HEADER_SIZE, between=True)
            version = IMAGE_HEADER.unpack(image)[2]
            self._pass(image)
            if version not in VERSIONS:
                self._raw()
            self._pass(self._exactly(DOMAIN_HEADER_SIZE, between=True))
            kinds = record_types(version)
        else:
            kinds = {number: kind for one in VERSIONS for number, kind in record_types(one).items()}
        offered = False
        while True:
            header = self._exactly(HEADER_SIZE, between=True)
            number, length = HEADER.unpack(header)
            kind = kinds.get(number)
            # With a page server it is the end of the list, and nobody is called.
            offered = offered or kind is RecordType.POSTCOPY_OFFER
            calls = kind in CALLBACKS and not (offered and kind is RecordType.POSTCOPY_TRANSITION)
            if calls and not self.writing:
                self.turn.clear()
            self._record(kind, header, length)
            if kind in _LAST:
                if not self.writing:
                    raise _EndedError
                self._raw()
            if calls and not self.writing:
                self.turn.wait()

    def _record(self, kind: RecordType | None, header: bytes, length: int) -> None:
        left = length + padding(length)
        if kind is not None:
            self._take(self._octets.strike(record_point("libxc", kind.name, self._moment)))
        try:
            self._pass(header)
            if self._pfns and kind in _LISTS:
                left -= self._page_list(kind, left)
            while left:
                data = self._some(left)
                left -= len(data)
                self._pass(data)
        finally:
            # Also of a stream that ends within the record.
            self._take(self._octets.end_record(last=kind in _LAST))

    def _page_list(self, kind: RecordType | None, left: int) -> int:
        """Pass on a page list, and place the points of the pages in it that faults wait for.
        Returns the number of bytes that passed."""
        if left < HEADER_SIZE:
            return 0
        head = self._exactly(HEADER_SIZE)
        self._pass(head)
        listed: int = HEADER.unpack(head)[0]
        count = min(listed, (left - HEADER_SIZE) // ENTRY_SIZE)
        contents = self._octets.offset + count * ENTRY_SIZE
        follow = kind is not RecordType.POSTCOPY_PFNS
        for first in range(0, count, AT_ONCE // ENTRY_SIZE):
            data = self._exactly(min(count - first, AT_ONCE // ENTRY_SIZE) * ENTRY_SIZE)
            for index, entry in enumerate(array("Q", data)):
                has = follow and has_contents(entry >> 60 << TYPE_SHIFT)
                pfn = entry & MAX_PFN
                if pfn in self._pfns:
                    place = self._octets.offset + index * ENTRY_SIZE
                    self._octets.place(contents if has else place, "page", pfn)
                contents += PAGE_SIZE * has
            self._pass(data)
        return HEADER_SIZE + count * ENTRY_SIZE

    def _raw(self) -> NoReturn:
        """Pass on what is no libxc stream, or follows its last record: its reader will say so."""
        while True:
            self._pass(self._some(AT_ONCE, between=True))

    # Bytes in and out

    def _exactly(self, size: int, *, between: bool = False) -> bytes:
        data = b""
        while len(data) < size:
            try:
                data += self._some(size - len(data), between=between and not data)
            except _EndedError:
                self._pass(data)
                raise
        return data

    def _some(self, size: int, *, between: bool = False) -> bytes:
        """Read up to `size` bytes; `between` records, everything that came has passed."""
        if between:
            self._rests()
        self._readable.poll()
        with self._at_rest:
            data = self._read(min(size, self._octets.most or AT_ONCE))
            self._idle = False
        if not data:
            raise _EndedError
        return data

    def _pass(self, data: bytes) -> None:
        self._take(self._octets.passes(data))

    def _write(self, data: bytes) -> None:
        super()._write(data)
        if self._octets.most:
            self._piece_passed()

    def _piece_passed(self) -> None:
        """Show the piece to the engine: a blocked write ends short, a read gets this piece only."""
        if self.writing:
            ident = threading.main_thread().ident
            assert ident is not None
            signal.pthread_kill(ident, signal.SIGUSR1)
            return
        while _count(self._ends.ours.fileno(), termios.TIOCOUTQ):
            time.sleep(0.0001)

    def _break(self, broken: BrokenError) -> None:
        """Let the engine's next system call fail, and the other side see the end."""
        if broken.shut:
            one_way = socket.SHUT_WR if self.writing else socket.SHUT_RD
            shut(self._ends.real, socket.SHUT_RDWR if broken.both else one_way)
        if self.writing:
            self._errnoval = broken.errnoval
            replacement = fails_to_write(broken.errnoval)
            os.dup2(replacement, self._ends.engine, inheritable=False)
            os.close(replacement)
            if self.point == "back":
                what = f"back channel: {os.strerror(broken.errnoval)}"
                self._abort.request(broken.errnoval, what)
            self._rests(ended=True)
            # A write in progress ends; the next one meets the replacement.
            while self._ends.ours.recv(AT_ONCE):
                pass
        elif broken.errnoval in (0, errno.EPIPE):
            self._ends.ours.shutdown(socket.SHUT_WR)
        else:
            # A UNIX socket that is closed with unread bytes resets its other end.
            os.write(self._ends.engine, b"\0")
            self._ends.ours.close()


def _count(fd: int, request: int) -> int:
    """Bytes of a socket that are unread (FIONREAD) or not yet taken by its other end (TIOCOUTQ)."""
    value = array("i", [0])
    fcntl.ioctl(fd, request, value)
    return value[0]
