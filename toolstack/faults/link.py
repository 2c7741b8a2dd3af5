"""The link of a migration with faults in it: a relay between the sender and the receiver's command.

    python -m xen_save_helper.toolstack.faults.link PLAN EVENTS COMMAND...

It stands where `ssh` would: what comes on its stdin goes to COMMAND's, and COMMAND's stdout to its
own; EVENTS is the trace's file. Its exit status is COMMAND's.

A message of the handshake is known by its octets. They come whole: each is written at once, and
most of them when all that went before has been read.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.plan import Fault, Plan, parse
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Side, Who
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES
from xen_save_helper.ipc_schema.trace import Trace

_AT_ONCE: Final = 1 << 16
_PIECES_A_SECOND: Final = 50
_DIRECTIONS: Final[Mapping[Side, str]] = {Side.SOURCE: "stream", Side.DESTINATION: "back"}
"""The direction of what a side says."""


def faults_of(direction: str, plan: Plan) -> list[Fault]:
    """Those that strike in a direction. Each is passed once, so there is nothing to count; chance
    is the seed's."""
    return [
        fault
        for index, fault in enumerate(plan.of(Who.LINK))
        if _direction_of(fault) == direction
        and (
            fault.times.percent is None
            or Random(f"{plan.seed}/link/{index}").random() * 100 < fault.times.percent
        )
    ]


def _direction_of(fault: Fault) -> str:
    if fault.point.kind is Kind.HANDSHAKE:
        return _DIRECTIONS[SIDES[MESSAGES[fault.point.of].sender]]
    return fault.point.name


class _CutError(Exception):
    """Nothing passes any more."""


class Direction(threading.Thread):
    """Passes octets from `source` to `sink`, through the faults of the direction `name`."""

    def __init__(
        self, name: str, source: int, sink: int, plan: Plan, trace: Trace, cut: _Cut
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._source = source
        self._sink = sink
        self._trace = trace
        self._cut = cut
        self._faults = faults_of(name, plan)
        self._offset = 0
        self._flip = 0
        self._rate = 0
        self._most = 0

    def run(self) -> None:
        """Until the source ends, or the sink, or a fault cuts it."""
        try:
            while data := os.read(self._source, _AT_ONCE):
                self._pass_on(data)
        except _CutError:
            return
        except OSError as bad:
            # One of the two ends has gone: its other direction will say so.
            self._trace.event("link", direction=self.name, error=str(bad))
        self._cut.end(self._sink)

    def _pass_on(self, data: bytes) -> None:
        while (found := self._next(data)) is not None:
            before, fault = found
            self._faults.remove(fault)
            self._write(data[:before])
            data = data[before:]
            self._strike(fault)
        self._write(data)

    def _next(self, data: bytes) -> tuple[int, Fault] | None:
        """The first place in `data` before which a fault strikes; of several there, the first."""
        places = [(self._place(fault, data), fault) for fault in self._faults]
        here = [(place, fault) for place, fault in places if 0 <= place < len(data)]
        return min(here, key=lambda one: one[0], default=None)

    def _place(self, fault: Fault, data: bytes) -> int:
        if fault.at is None:
            return data.find(MESSAGES[fault.point.of].octets)
        return fault.at - self._offset

    def _strike(self, fault: Fault) -> None:
        kind, value = fault.action
        self._trace.event(
            "fault",
            point=fault.point.name if fault.at is None else f"{fault.point.name}@{fault.at}",
            action=str(fault.action),
            count=1,
            fault=str(fault),
        )
        if kind is actions.FLIP:
            self._flip ^= 1 << int(value or 0)
        elif kind is actions.STALL:
            threading.Event().wait(None if value is None else float(value))
        elif kind is actions.TRICKLE:
            self._rate = int(value or 1)
        elif kind is actions.SHORT_WRITES:
            self._most = int(value or 1)
        else:
            self._cut.all(reset=kind is actions.RESET)
            raise _CutError

    def _write(self, data: bytes) -> None:
        if not data:
            return
        self._offset += len(data)
        if self._flip:
            data = bytes((data[0] ^ self._flip,)) + data[1:]
            self._flip = 0
        step = self._most or len(data)
        if self._rate:
            step = min(step, max(1, self._rate // _PIECES_A_SECOND))
        for start in range(0, len(data), step):
            piece = data[start : start + step]
            while piece:
                piece = piece[os.write(self._sink, piece) :]
            if self._rate:
                time.sleep(step / self._rate)


class _Cut:
    """Ends the link, for one direction or for all."""

    def __init__(self, ends: Sequence[int]) -> None:
        """`ends`: our descriptors of both sides."""
        self._ends = ends
        self._ended: set[int] = set()
        self._lock = threading.Lock()

    def end(self, sink: int) -> None:
        with self._lock:
            if sink not in self._ended:
                self._ended.add(sink)
                _shut(sink)

    def all(self, *, reset: bool) -> None:
        for fd in self._ends:
            with self._lock:
                if fd not in self._ended:
                    self._ended.add(fd)
                    if reset:
                        _linger_not(fd)
                    _shut(fd)


def _shut(fd: int) -> None:
    """Its number stays in use: a thread may be about to read or write there."""
    nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    if os.path.exists(f"/proc/self/fd/{fd}"):
        try:
            with socket.socket(fileno=os.dup(fd)) as copy:
                copy.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # a pipe, or its other end has gone: closing it is all there is to do
    os.dup2(nothing, fd)
    os.close(nothing)


def _linger_not(fd: int) -> None:
    """A TCP connection is then reset by its end; others have no such thing."""
    try:
        with socket.socket(fileno=os.dup(fd)) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass  # no socket


def main(arguments: Sequence[str]) -> int:
    text, events, *command = arguments
    plan = parse(text)
    file = os.open(events, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    trace = Trace("link", lambda line: os.write(file, line))
    ours, its_stdin = socket.socketpair()
    ours_too, its_stdout = socket.socketpair()
    process = subprocess.Popen(command, stdin=its_stdin.fileno(), stdout=its_stdout.fileno())
    for theirs in (its_stdin, its_stdout):
        theirs.close()
    to_it, from_it = ours.detach(), ours_too.detach()
    cut = _Cut((0, 1, to_it, from_it))
    Direction("stream", 0, to_it, plan, trace, cut).start()
    back = Direction("back", from_it, 1, plan, trace, cut)
    back.start()
    status = process.wait()
    # What it has written is here; a direction that stalls must not keep us.
    back.join(timeout=1.0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # A thread may hang in a stall for ever.
    os._exit(main(sys.argv[1:]))
