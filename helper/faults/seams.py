"""The faults of a plan at a helper's seams."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from xen_save_helper.helper.abort import Abort
from xen_save_helper.helper.channels.channel import CONTEXT
from xen_save_helper.helper.faults.injector import Strike
from xen_save_helper.helper.faults.plan_source import read_plan
from xen_save_helper.helper.faults.session import PREFIX, Session
from xen_save_helper.helper.faults.striker import Striker
from xen_save_helper.helper.job import EXIT_FAILED, Job
from xen_save_helper.helper.seams import Seams
from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.channel.helper_request import Engine
from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.faults.actions import FAIL
from xen_save_helper.ipc_schema.faults.plan import PlanError
from xen_save_helper.ipc_schema.faults.points import SIDES, Kind, Side, Who, phase_point
from xen_save_helper.ipc_schema.trace import Trace

if TYPE_CHECKING:
    from xen_save_helper.helper.seams import OpenPipe, OpenZmq


class FaultySeams(Seams):
    """The seams of a process with the plan that is `given` (see `read_plan`).

    `operation` is "" if it becomes known later, `pipe` is for libxl's channel. A wrong plan ends
    the process: what it says about the plan is its last line.
    """

    def __init__(self, given: str, operation: str, trace: Trace, *, pipe: bool) -> None:
        try:
            if operation and operation not in {one.value for one in Operation}:
                known = " or ".join(one.value for one in Operation)
                raise PlanError(f"--operation {operation!r}: want {known}")
            side = SIDES[Operation(operation)] if operation else None
            self._session = Session(read_plan(given), trace, pipe=pipe, side=side)
            self._pager = Striker(self._session.plan, Who.PAGER, trace, side=side, prefix=PREFIX)
        except PlanError as wrong:
            _refuse(str(wrong))
        # A page server that this process starts has its part of the same plan.
        os.environ[variables.FAULTS] = str(self._session.plan)

    def step(self, name: str) -> None:
        _strike(self._pager, name)

    def milestone(self, name: str) -> None:
        _strike(self._session, name)

    def begin(self, job: Job) -> None:
        """Ends the process if a fault cannot fire in the job."""
        side = SIDES[job.request.operation]
        self._session.injector.side = self._pager.injector.side = side
        for fault in self._session.injector.faults:
            if fault.point.kind is Kind.PHASE and job.request.engine is Engine.LIBXENGUEST:
                _refuse(f"'{fault}': the engine {job.request.engine.value} has no phases")

    def traced(self, trace: Trace) -> Trace:
        """`trace` with the points of the phases in it."""
        return _PhaseTrace(trace, self._session.strike)

    def streams(self, job: Job, abort: Abort) -> AbstractContextManager[None]:
        from xen_save_helper.helper.faults.streams import relayed

        return relayed(self._session, job, abort)

    def zmq_channel(self) -> OpenZmq:
        from xen_save_helper.helper.faults.faulty_zmq import FaultyZmqChannel

        return partial(FaultyZmqChannel, self._session)

    def pipe_channel(self) -> OpenPipe:
        from xen_save_helper.helper.faults.faulty_pipe import FaultyPipeChannel

        return partial(FaultyPipeChannel, self._session)


class PageServerSeams(Seams):
    """The seams of a page server with its part of the plan that is `given`."""

    def __init__(self, given: str, trace: Trace) -> None:
        """Raises ValueError for a wrong plan."""
        plan = read_plan(given).seeded()
        self._striker = Striker(plan, Who.PAGE_SERVER, trace, side=Side.SOURCE, prefix=PREFIX)

    def step(self, name: str) -> None:
        _strike(self._striker, name)


def _strike(striker: Striker, point: str) -> None:
    """Only the process can be struck there."""
    for firing in striker.strike(point):
        raise AssertionError(firing)


def _refuse(reason: str) -> NoReturn:
    print(f"{CONTEXT}: faults: {reason}", file=sys.stderr)
    sys.exit(EXIT_FAILED)


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
