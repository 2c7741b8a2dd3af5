"""The controller's own part of a plan at work in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xen_save_helper.helper.faults.injector import Firing, Injector
from xen_save_helper.helper.faults.process_faults import carry_out
from xen_save_helper.helper.faults.shared_counts import counts_of
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.actions import PROCESS
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Who
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.toolstack.faults.handshake import HandshakeFaults
    from xen_save_helper.toolstack.faults.records import RecordFaults


class ControllerFaults:
    """Strikes where the controller passes a point. Its side is known once an operation begins."""

    def __init__(self, plan: Plan, trace: Trace) -> None:
        """`plan` has a seed. Raises PlanError for faults that nobody here would carry out."""
        assert plan.seed is not None, "whoever reads a plan draws its seed"
        for fault in plan.staged:
            raise PlanError(
                f"'{fault}': no helper and no controller does that; `xen-toolstack faults run` does"
            )
        mine = plan._replace(faults=plan.of(Who.CONTROLLER))
        self._injector = Injector(mine.faults, plan.seed, counts=counts_of(mine))
        self._trace = trace
        self._records: RecordFaults | None = None

    @property
    def idle(self) -> bool:
        """The plan has nothing for a controller."""
        return not self._injector.faults

    @property
    def of_messages(self) -> list[str]:
        """Those at messages, which our own helper's channel alone has."""
        faults = self._injector.faults
        return [str(fault) for fault in faults if fault.point.kind is Kind.MESSAGE]

    def begin(self, operation: Operation) -> None:
        self._injector.side = SIDES[operation]

    @property
    def records(self) -> RecordFaults:
        """The faults in the records of the libxl stream."""
        from xen_save_helper.toolstack.faults.records import RecordFaults

        if self._records is None:
            self._records = RecordFaults(self)
        return self._records

    def handshake(self, ends: Sequence[int]) -> HandshakeFaults:
        """The faults in what is said over the link whose descriptors are `ends`."""
        from xen_save_helper.toolstack.faults.handshake import HandshakeFaults

        return HandshakeFaults(self, ends)

    def has(self, point: str) -> bool:
        """Whether anything may fire at the point."""
        return self._injector.has((point,))

    def strike(self, point: str) -> Iterator[Firing]:
        """The point is passed. What fires is told; what is done to the process is done, and the
        rest is the caller's to do, in order."""
        for firing in self._injector.passes(point):
            fault = firing.fault
            self._trace.event(
                "fault",
                point=fault.point.name,
                action=str(fault.action),
                count=firing.nth,
                fault=str(fault),
            )
            print(f"fault: {fault}, time {firing.nth}", file=sys.stderr, flush=True)
            if fault.action.kind in PROCESS:
                carry_out(fault.action)
            else:
                yield firing
