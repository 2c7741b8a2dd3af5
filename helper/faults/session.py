"""A plan at work in this process: what the hooks in the channels, the trace and `main` talk to."""

from __future__ import annotations

import sys
from typing import NoReturn, Protocol

from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.given import read_plan
from xen_save_helper.helper.faults.injector import Injector, Strike
from xen_save_helper.helper.faults.shared_counts import counts_of
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.helper.job import EXIT_FAILED, Job
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.actions import FAIL, on_pipe
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Side, Who, phase_point
from xen_save_helper.ipc_schema.trace import Trace


def open_session(given: str, operation: str, trace: Trace, *, pipe: bool) -> Session:
    """The session of the plan that is `given` (see `read_plan`); `operation` is "" where it is told
    later. A wrong plan ends the process: what is said about it is the last that is said."""
    try:
        if operation and operation not in {one.value for one in Operation}:
            known = " or ".join(one.value for one in Operation)
            raise PlanError(f"--operation {operation!r}: want {known}")
        side = SIDES[Operation(operation)] if operation else None
        return Session(read_plan(given), trace, pipe=pipe, side=side)
    except PlanError as wrong:
        _refuse(str(wrong))


def _refuse(reason: str) -> NoReturn:
    print(f"{CONTEXT}: faults: {reason}", file=sys.stderr)
    sys.exit(EXIT_FAILED)


class Streams(Protocol):
    """The relayed streams, which hear of each callback: see `Session.calling` and `answered`."""

    def calling(self, callback: str) -> None: ...

    def answered(self, callback: str) -> None: ...


class Session(Striker):
    """The helper's own part of `plan`. `side` is None where it is told later.

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
        # Those of the other side, too: a choice is that of a fault's place among all of them.
        injector = Injector(plan.of(Who.HELPER), plan.seed, side, counts_of(mine))
        super().__init__(injector, trace, f"{CONTEXT}: ")
        self.streams: Streams | None = None
        """Set for as long as streams are relayed."""
        trace.event("faults", plan=str(plan))
        if mine.by_chance:
            print(f"{CONTEXT}: faults: seed={plan.seed}", file=sys.stderr, flush=True)

    def begin(self, job: Job) -> None:
        """The job is known. Ends the process where a fault cannot fire in it."""
        self.injector.side = SIDES[job.request.operation]
        for fault in self.injector.faults:
            if fault.point.kind is Kind.PHASE and job.request.engine is Engine.LIBXENGUEST:
                _refuse(f"'{fault}': the engine {job.request.engine.value} has no phases")

    def calling(self, callback: str) -> None:
        """`callback` is about to be made: what the engine has written goes before what the handler
        writes. Raises OSError."""
        if self.streams is not None:
            self.streams.calling(callback)

    def answered(self, callback: str) -> None:
        """The answer to `callback` is taken: the streams are the engine's again."""
        if self.streams is not None:
            self.streams.answered(callback)

    def milestone(self, name: str) -> None:
        """A point at which nothing but the process can be struck."""
        for firing in self.strike(name):
            raise AssertionError(firing)

    def traced(self, trace: Trace) -> Trace:
        """`trace` with the points of the phases in it."""
        return _PhaseTrace(trace, self.strike)


class _PhaseTrace(Trace):
    def __init__(self, inner: Trace, strike: Strike) -> None:
        super().__init__("helper")
        self._inner = inner
        self._strike = strike

    def event(self, event: str, **fields: object) -> None:
        """Raises OSError at the beginning of a phase that is to fail."""
        self._inner.event(event, **fields)
        if event == "phase" and fields.get("state") == "begin":
            for firing in self._strike(phase_point(str(fields["name"]))):
                assert firing.fault.action.kind is FAIL
                raise firing.error()
