"""A plan at work in a process: what happens when a point is passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from xen_save_helper.helper.faults.injector import Firing, Injector
from xen_save_helper.helper.faults.process_faults import carry_out
from xen_save_helper.ipc_schema.faults.actions import PROCESS
from xen_save_helper.ipc_schema.trace import Trace


def tell(trace: Trace, firing: Firing) -> None:
    """Write the event `fault`."""
    fault, nth, _random = firing
    place = "" if fault.at is None else f"@{fault.at}"
    trace.event(
        "fault",
        point=f"{fault.point.name}{place}",
        action=str(fault.action),
        count=nth,
        fault=str(fault),
    )


class Striker:
    """Tells what fires in `trace` and on stderr, in lines that start with `prefix`."""

    def __init__(self, injector: Injector, trace: Trace, prefix: str = "") -> None:
        self.injector = injector
        self._trace = trace
        self._prefix = prefix

    def strike(self, point: str, at: int | None = None) -> Iterator[Firing]:
        """See `injector.Strike`."""
        for firing in self.injector.passes(point, at):
            tell(self._trace, firing)
            # One write for the line and its end: other threads write at the same time.
            text = f"{self._prefix}fault: {firing.fault}, time {firing.nth}\n"
            print(text, end="", file=sys.stderr, flush=True)
            if firing.fault.action.kind in PROCESS:
                carry_out(firing.fault.action)
            else:
                yield firing

    def has(self, point: str) -> bool:
        """Whether any fault may fire at the point."""
        return self.injector.has((point,))
