"""The helper's part of a plan at work in this process."""

from __future__ import annotations

import sys

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.actions import on_pipe
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.ipc_schema.trace import Trace

PREFIX = f"{CONTEXT}: "
"""Of lines on stderr."""


class Streams:
    """The job's streams, which hear of each callback. These pass no relays."""

    def calling(self, callback: str) -> None:
        """`callback` is about to be made: what the engine has written goes before what the handler
        writes. Raises OSError."""

    def answered(self, callback: str) -> None:
        """The answer to `callback` is taken: the streams are the engine's again."""


class Session(Striker):
    """The helper's own part of `plan`. `side` is None if it becomes known later.

    Raises PlanError for a fault that cannot fire on this channel (`pipe` for libxl's), or that
    nobody here would carry out.
    """

    def __init__(self, plan: Plan, trace: Trace, *, pipe: bool, side: Side | None = None) -> None:
        self.plan = plan = plan.seeded()
        mine = plan._replace(faults=plan.of(Who.HELPER, side))
        for fault in mine.faults:
            if pipe and not on_pipe(fault.point, fault.action.kind):
                raise PlanError(f"'{fault}': there is no such thing on libxl's pipes")
        super().__init__(plan, Who.HELPER, trace, side=side, prefix=PREFIX)
        self.streams = Streams()
        trace.event("faults", plan=str(plan))
        if mine.by_chance:
            print(f"{CONTEXT}: faults: seed={plan.seed}", file=sys.stderr, flush=True)
