"""The link of a migration with faults in it: a relay between the sender and the receiver's command.

    python -m xen_save_helper.toolstack.faults.link PLAN EVENTS PORT TARGET COMMAND...

It stands in the place of `ssh`: what comes on its stdin goes to COMMAND's, and COMMAND's stdout
goes to its own. EVENTS is the trace's file. Its exit status is COMMAND's. If PORT is not 0, a
pager is led there, and the page server's own port goes into the file TARGET (`tunnel`).

A message of the handshake is recognised by its bytes. They arrive together: each message is written
at once, and mostly after everything before it has been read.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Final

from xen_save_helper.helper.faults.descriptors import hollow, reset_at_end, shut
from xen_save_helper.helper.faults.injector import Firing
from xen_save_helper.helper.faults.outlet import BrokenError, Outlet
from xen_save_helper.helper.faults.striker import tell
from xen_save_helper.ipc_schema.faults.plan import Fault, Plan, parse
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Side, Who
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.faults.tunnel import Led, trace_to

_AT_ONCE: Final = 1 << 16
_DIRECTIONS: Final[Mapping[Side, str]] = {Side.SOURCE: "stream", Side.DESTINATION: "back"}
"""The direction in which a side speaks."""


def faults_of(direction: str, plan: Plan) -> list[Fault]:
    """The faults that strike in a direction."""
    return [fault for fault in plan.drawn(Who.LINK) if _direction_of(fault) == direction]


def _direction_of(fault: Fault) -> str:
    if fault.point.kind is Kind.HANDSHAKE:
        return _DIRECTIONS[SIDES[MESSAGES[fault.point.of].sender]]
    return fault.point.name


class Direction(threading.Thread):
    """Passes bytes from `source` to `sink`, through the faults of the direction `name`."""

    def __init__(
        self,
        name: str,
        source: int,
        sink: int,
        plan: Plan,
        trace: Trace,
        cut: _Cut,
        seen: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        """`seen` makes of what comes what is to pass."""
        super().__init__(name=name, daemon=True)
        self._source = source
        self._sink = sink
        self._trace = trace
        self._cut = cut
        self._seen = seen
        self._faults = faults_of(name, plan)
        self._outlet = Outlet(self._strike, self._write, writing=True)
        self._unheard = {
            index: MESSAGES[fault.point.of].data
            for index, fault in enumerate(self._faults)
            if fault.at is None
        }
        """The messages that faults wait for, by the index of the fault."""
        for index, fault in enumerate(self._faults):
            if fault.at is not None:
                self._outlet.place(fault.at, name, index)

    def run(self) -> None:
        """Pass bytes on until the source or the sink ends, or a fault cuts the direction."""
        try:
            while data := os.read(self._source, _AT_ONCE):
                self._find_messages(data)
                self._outlet.pass_on(self._seen(data))
        except BrokenError as broken:
            self._cut.all(reset=broken.both)
            return
        except OSError as bad:
            # One of the two ends has gone; the other direction will say so.
            self._trace.event("link", direction=self.name, error=str(bad))
        self._cut.end(self._sink)

    def _find_messages(self, data: bytes) -> None:
        for index, octets in list(self._unheard.items()):
            if (place := data.find(octets)) >= 0:
                self._outlet.place(self._outlet.offset + place, self.name, index)
                del self._unheard[index]

    def _strike(self, point: str, at: int | None = None) -> Iterator[Firing]:
        """Strike the fault with the index `at`; the point is this direction."""
        del point
        assert at is not None
        firing = Firing(self._faults[at], 1, Random())
        tell(self._trace, firing)
        yield firing

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._sink, data) :]


class _Cut:
    """Ends the link, in one direction or in both; our descriptors of it stay in use."""

    def __init__(self, ends: Sequence[int]) -> None:
        """`ends`: our descriptors of both sides."""
        self._ends = ends
        self._lock = threading.Lock()

    def end(self, *sinks: int, reset: bool = False) -> None:
        """What has ended stays as it is."""
        with self._lock:
            for fd in sinks:
                if reset:
                    reset_at_end(fd)
                shut(fd)
                hollow(fd)

    def all(self, *, reset: bool) -> None:
        self.end(*self._ends, reset=reset)


def main(arguments: Sequence[str]) -> int:
    text, events, port, target, *command = arguments
    plan = parse(text)
    with trace_to(Path(events)) as trace:
        return _between(command, plan, trace, int(port), Path(target))


def _between(command: Sequence[str], plan: Plan, trace: Trace, port: int, target: Path) -> int:
    ours, its_stdin = socket.socketpair()
    ours_too, its_stdout = socket.socketpair()
    process = subprocess.Popen(command, stdin=its_stdin.fileno(), stdout=its_stdout.fileno())
    for theirs in (its_stdin, its_stdout):
        theirs.close()
    to_it, from_it = ours.detach(), ours_too.detach()
    cut = _Cut((0, 1, to_it, from_it))

    led = [Led(port, target)] if port else []
    Direction("stream", 0, to_it, plan, trace, cut, *led).start()
    back = Direction("back", from_it, 1, plan, trace, cut)
    back.start()
    status = process.wait()
    # All that it has written has arrived; a direction that stalls must not delay us.
    back.join(timeout=1.0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # A thread may hang in a stall for ever.
    os._exit(main(sys.argv[1:]))
