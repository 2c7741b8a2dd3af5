"""The helper's part of a plan at work in this process."""

from __future__ import annotations

import sys
from typing import Protocol

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.injector import Injector
from xen_save_helper.helper.faults.shared_counts import counts_of
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.ipc_schema.faults.actions import on_pipe
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.ipc_schema.trace import Trace


class Streams(Protocol):
    """The relayed streams, which hear of each callback: see `Session.calling` and `answered`."""

    def calling(self, callback: str) -> None: ...

    def answered(self, callback: str) -> None: ...


class Session(Striker):
    """The helper's own part of `plan`. `side` is None if it becomes known later.

    Raises PlanError for a fault that cannot fire on this channel (`pipe` for libxl's), or that
    nobody here would carry out.
    """

    def __init__(self, plan: Plan, trace: Trace, *, pipe: bool, side: Side | None = None) -> None:
        plan = plan.seeded()
        assert plan.seed is not None
        for fault in plan.staged:
            raise PlanError(f"'{fault}': no helper does that; `xen-toolstack faults run` does")
        mine = plan._replace(faults=plan.of(Who.HELPER, side))
        for fault in mine.faults:
            if pipe and not on_pipe(fault.point, fault.action.kind):
                raise PlanError(f"'{fault}': there is no such thing on libxl's pipes")
        # The other side's faults as well: chance depends on a fault's place among all of them.
        injector = Injector(plan.of(Who.HELPER), plan.seed, side, counts_of(mine))
        super().__init__(injector, trace, f"{CONTEXT}: ")
        self.streams: Streams | None = None
        """The relays, while streams are relayed."""
        trace.event("faults", plan=str(plan))
        if mine.by_chance:
            print(f"{CONTEXT}: faults: seed={plan.seed}", file=sys.stderr, flush=True)

    def calling(self, callback: str) -> None:
        """`callback` is about to be made: what the engine has written goes before what the handler
        writes. Raises OSError."""
        if self.streams is not None:
            self.streams.calling(callback)

    def answered(self, callback: str) -> None:
        """The answer to `callback` is taken: the streams are the engine's again."""
        if self.streams is not None:
            self.streams.answered(callback)
