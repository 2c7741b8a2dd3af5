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
from collections.abc import Callable, Sequence
from pathlib import Path

from xen_save_helper.helper.faults.octets import BrokenError
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.plan import Plan, parse
from xen_save_helper.ipc_schema.faults.points import SIDES, Side, Who, handshake_point
from xen_save_helper.ipc_schema.streams.xl_handshake import MESSAGES
from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.faults.connection import Connection, Direction
from xen_save_helper.toolstack.faults.tunnel import Led, trace_to


class _LinkDirection(Direction):
    """The direction in which the side `speaker` says its messages; `led` makes of what comes what
    is to pass."""

    def __init__(
        self,
        speaker: Side,
        source: int,
        sink: int,
        striker: Striker,
        connection: Connection,
        trace: Trace,
        led: Callable[[bytes], bytes],
    ) -> None:
        name = "stream" if speaker is Side.SOURCE else "back"
        super().__init__(name, source, sink, striker, connection)
        self._trace = trace
        self._led = led
        self._unheard = {
            handshake_point(message.name): message.data
            for message in MESSAGES.values()
            if SIDES[message.sender] is speaker and striker.has(handshake_point(message.name))
        }
        """The messages that faults wait for, by their points."""

    def _seen(self, data: bytes) -> bytes:
        for point, octets in list(self._unheard.items()):
            if (place := data.find(octets)) >= 0:
                self._octets.place(self._octets.offset + place, point, None)
                del self._unheard[point]
        return self._led(data)

    def _lost(self, broken: BrokenError) -> None:
        self._trace.event("link", direction=self.point, error=str(broken))


def main(arguments: Sequence[str]) -> int:
    text, events, port, target, *command = arguments
    plan = parse(text).seeded()
    with trace_to(Path(events)) as trace:
        return _between(command, plan, trace, int(port), Path(target))


def _between(command: Sequence[str], plan: Plan, trace: Trace, port: int, target: Path) -> int:
    ours, its_stdin = socket.socketpair()
    ours_too, its_stdout = socket.socketpair()
    process = subprocess.Popen(command, stdin=its_stdin.fileno(), stdout=its_stdout.fileno())
    for theirs in (its_stdin, its_stdout):
        theirs.close()
    to_it, from_it = ours.detach(), ours_too.detach()
    connection = Connection(0, 1, to_it, from_it)
    striker = Striker(plan, Who.LINK, trace=trace, prefix=None)
    led = Led(port, target) if port else bytes
    _LinkDirection(Side.SOURCE, 0, to_it, striker, connection, trace, led).start()
    back = _LinkDirection(Side.DESTINATION, from_it, 1, striker, connection, trace, bytes)
    back.start()
    status = process.wait()
    # All that it has written has arrived; a direction that stalls must not delay us.
    back.join(timeout=1.0)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    # A thread may hang in a stall for ever.
    os._exit(main(sys.argv[1:]))
