"""A plan at work in a process: what happens when a point is passed."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from xen_save_helper.helper.faults.injector import Firing, Injector
from xen_save_helper.helper.faults.plan_files import counts_of
from xen_save_helper.helper.faults.process_faults import carry_out
from xen_save_helper.ipc_schema.faults.actions import PROCESS
from xen_save_helper.ipc_schema.faults.plan import STAGED, Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.ipc_schema.trace import Trace

_NOBODY = dict.fromkeys(Who, "no helper") | {Who.CONTROLLER: "no helper and no controller"}


class Striker(Injector):
    """The part of `plan`, which has a seed, that is carried out by `who`, the first of whom is
    asked by the plan's author. What fires is told in `trace` and, unless `prefix` is None, on
    stderr in lines that start with it. `side` is None if it becomes known later.

    Raises PlanError for a fault that nobody here carries out, or without a place for its counts.
    """

    def __init__(
        self,
        plan: Plan,
        *who: Who,
        trace: Trace,
        side: Side | None = None,
        prefix: str | None = "",
    ) -> None:
        assert plan.seed is not None, "whoever reads a plan draws its seed"
        for fault in plan.of(*STAGED):
            if not {*who} <= STAGED:
                nobody = _NOBODY[who[0]]
                raise PlanError(f"'{fault}': {nobody} does that; `xen-toolstack faults run` does")
        counts = counts_of(plan.part(*who, side=side))
        # The other side's faults as well: chance depends on a fault's place among all of them.
        super().__init__(plan.of(*who), plan.seed, side, counts.next if counts else None)
        self._trace = trace
        self._prefix = prefix

    def strike(self, point: str, at: int | None = None) -> Iterator[Firing]:
        """A point is passed (see `passes`): do what is to be done to the process, and yield the
        other firings, in order, for the caller to carry out."""
        for firing in self.passes(point, at):
            fault, nth, _random = firing
            place = "" if fault.at is None else f"@{fault.at}"
            self._trace.event(
                "fault",
                point=f"{fault.point.name}{place}",
                action=str(fault.action),
                count=nth,
                fault=str(fault),
            )
            if self._prefix is not None:
                # One write for the line and its end: other threads write at the same time.
                text = f"{self._prefix}fault: {fault}, time {nth}\n"
                print(text, end="", file=sys.stderr, flush=True)
            if fault.action.kind in PROCESS:
                carry_out(fault.action)
            else:
                yield firing
