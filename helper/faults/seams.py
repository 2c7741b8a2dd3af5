"""The faults of a plan at a helper's seams."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.plan_files import read_plan
from xen_save_helper.helper.faults.streams import Streams
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.helper.job import EXIT_FAILED, Job
from xen_save_helper.helper.seams import Seams
from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.actions import on_pipe
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Side, Who, phase_point
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.seams import OpenPipe, OpenZmq

_PREFIX: Final = f"{CONTEXT}: "
"""Of lines on stderr."""


class ProcessSeams(Seams):
    """The seams of a process that has only steps."""

    def __init__(self, striker: Striker) -> None:
        self._striker = striker

    def step(self, name: str) -> None:
        for firing in self._striker.strike(name):
            raise AssertionError(firing)  # only the process can be struck there


class FaultySeams(ProcessSeams):
    """The seams of a helper with the plan that is `given` (see `read_plan`).

    `operation` is "" if it becomes known later, `pipe` is for libxl's channel. A wrong plan ends
    the process: what it says about the plan is its last line.
    """

    def __init__(self, given: str, operation: str, trace: Trace, *, pipe: bool) -> None:
        try:
            if operation and operation not in {one.value for one in Operation}:
                known = " or ".join(one.value for one in Operation)
                raise PlanError(f"--operation {operation!r}: want {known}")
            side = SIDES[Operation(operation)] if operation else None
            plan = read_plan(given).seeded()
            super().__init__(of_helper(plan, trace, pipe=pipe, side=side))
        except PlanError as wrong:
            _refuse(str(wrong))
        # A page server that this process starts has its part of the same plan.
        os.environ[variables.FAULTS] = str(plan)
        self._streams = Streams()

    def begin(self, job: Job) -> None:
        """Ends the process if a fault cannot fire in the job."""
        self._striker.side = SIDES[job.request.operation]
        for fault in self._striker.faults:
            if fault.point.kind is Kind.PHASE and job.request.engine is Engine.LIBXENGUEST:
                _refuse(f"'{fault}': the engine {job.request.engine.value} has no phases")

    def traced(self, trace: Trace) -> Trace:
        """`trace` with the points of the phases in it."""
        return _PhaseTrace(trace, self._striker)

    def streams(self, job: Job, abort: Abort) -> AbstractContextManager[None]:
        return self._streams.relayed(self._striker, job, abort)

    def zmq_channel(self) -> OpenZmq:
        from xen_save_helper.helper.faults.faulty_zmq import FaultyZmqChannel

        return partial(FaultyZmqChannel, self._striker, self._streams)

    def pipe_channel(self) -> OpenPipe:
        from xen_save_helper.helper.faults.faulty_pipe import FaultyPipeChannel

        return partial(FaultyPipeChannel, self._striker, self._streams)


def of_helper(plan: Plan, trace: Trace, *, pipe: bool, side: Side | None = None) -> Striker:
    """The helper's part of `plan`, which has a seed. Raises PlanError for a fault that cannot fire
    on this channel, or that nobody here carries out."""
    mine = plan.part(Who.HELPER, side=side)
    for fault in mine.faults:
        if pipe and not on_pipe(fault.point, fault.action.kind):
            raise PlanError(f"'{fault}': there is no such thing on libxl's pipes")
    striker = Striker(plan, Who.HELPER, Who.PAGER, trace=trace, side=side, prefix=_PREFIX)
    trace.event("faults", plan=str(plan))
    if mine.by_chance:
        print(f"{_PREFIX}faults: seed={plan.seed}", file=sys.stderr, flush=True)
    return striker


def of_page_server(given: str, trace: Trace) -> Seams:
    """Those of a page server with its part of the plan that is `given`. Raises PlanError."""
    plan, here = read_plan(given).seeded(), Side.SOURCE
    return ProcessSeams(Striker(plan, Who.PAGE_SERVER, trace=trace, side=here, prefix=_PREFIX))


def _refuse(reason: str) -> NoReturn:
    print(f"{_PREFIX}faults: {reason}", file=sys.stderr)
    sys.exit(EXIT_FAILED)


class _PhaseTrace(Trace):
    def __init__(self, inner: Trace, striker: Striker) -> None:
        super().__init__("helper")
        self._inner = inner
        self._striker = striker

    def event(self, event: str, **fields: object) -> None:
        """Raises OSError at the beginning of a phase that is to fail."""
        self._inner.event(event, **fields)
        if event == "phase" and fields.get("state") == "begin":
            for firing in self._striker.strike(phase_point(str(fields["name"]))):
                raise firing.error()
