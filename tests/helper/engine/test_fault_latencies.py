from __future__ import annotations

import time
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests import trace_lines
from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.reporter import Reporter
from xen_save_helper.helper.channels.silent_channel import SilentChannel
from xen_save_helper.helper.engine.fault_latencies import FaultLatencies
from xen_save_helper.ipc_schema.trace import Trace


class Kept(Trace):
    def __init__(self) -> None:
        super().__init__("helper")
        self.lines: list[dict[str, Any]] = []

    def event(self, event: str, **fields: object) -> None:
        line = {"t": 0.0, "pid": 1, "process": "helper", "event": event, **fields}
        trace_lines.check([line])
        self.lines.append(line)


@given(st.lists(st.floats(0, 2), min_size=1, max_size=50))
def test_each_fault_is_in_the_class_of_its_latency(waits: list[float]) -> None:
    trace = Kept()
    with Abort() as abort:
        latencies = FaultLatencies(Reporter(SilentChannel(), abort, trace))
        for wait in waits:
            latencies.add(time.monotonic() - wait, missing=5)
        latencies.tell(missing=0)
        latencies.tell(missing=0)
    assert sum(line["faults"] for line in trace.lines) == len(waits)
    assert all(sum(line["latencies"]) == line["faults"] for line in trace.lines)
    longest = max(line["longest"] for line in trace.lines)
    assert longest >= max(waits) - 1e-6
    slowest = max(len(line["latencies"]) for line in trace.lines) - 1
    microseconds = longest * 1e6
    assert microseconds - 1 < 2**slowest
    assert microseconds + 1 >= 2**slowest / 2
