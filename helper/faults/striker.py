"""A plan at work in a process: what happens when a point is passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from xen_save_helper.helper.faults.injector import Firing, Injector
from xen_save_helper.helper.faults.process_faults import carry_out
from xen_save_helper.helper.faults.shared_counts import counts_of
from xen_save_helper.ipc_schema.faults.actions import PROCESS
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.ipc_schema.trace import Trace

_NOBODY = dict.fromkeys(Who, "no helper") | {Who.CONTROLLER: "no helper and no controller"}


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
    """The part of `plan`, which has a seed, that `who` carries out. What fires is told in `trace`
    and on stderr, in lines that start with `prefix`. `side` is None if it becomes known later.

    Raises PlanError for a fault that nobody here carries out, or without a place for its counts.
    """

    def __init__(
        self, plan: Plan, who: Who, trace: Trace, *, side: Side | None = None, prefix: str = ""
    ) -> None:
        assert plan.seed is not None, "whoever reads a plan draws its seed"
        for fault in plan.staged:
            raise PlanError(f"'{fault}': {_NOBODY[who]} does that; `xen-toolstack faults run` does")
        counts = counts_of(plan._replace(faults=plan.of(who, side)))
        # The other side's faults as well: chance depends on a fault's place among all of them.
        self.injector = Injector(plan.of(who), plan.seed, side, counts)
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
