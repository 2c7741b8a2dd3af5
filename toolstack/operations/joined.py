"""A stream and a helper that run at once and end as one: what a save and a restore do alike."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import Any

from xen_save_helper.ipc_schema.channel.messages import Operation
from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack import standstill
from xen_save_helper.toolstack.cancellation import spawn
from xen_save_helper.toolstack.context import Context
from xen_save_helper.toolstack.helpers.request import HelperRequest, HelperResult
from xen_save_helper.toolstack.helpers.supervisor import SaveHelper
from xen_save_helper.toolstack.operations.operation import Report
from xen_save_helper.toolstack.rules import join
from xen_save_helper.toolstack.rules.join import Join, JoinAction, Task


class JoinedOperation(ABC):
    """Runs once. `cancel` makes it end soon, in order, with ERROR_ABORTED."""

    def __init__(self, ctx: Context, domid: int | None, what: str) -> None:
        """`what` names the operation, for people and as `Operation` does."""
        self._ctx = ctx
        self._what = what
        if ctx.faults is not None:
            ctx.faults.begin(Operation(what))
        self._report = Report(ctx, domid)
        self._join = Join()
        self._helper: SaveHelper | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._cancelled = False
        self._fault: BaseException | None = None
        self._completed: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def cancel(self) -> None:
        self._cancelled = True
        if self._join.running(Task.STREAM) or self._join.running(Task.HELPER):
            self._fail(f"the {self._what} was cancelled", Error.ABORTED)

    @abstractmethod
    def _abort_stream(self, rc: int) -> None:
        """Stop the stream's machine; it reports to the join."""

    @abstractmethod
    def _joined(self, rc: int) -> None:
        """Stream and helper have stopped, with the first failure's code."""

    @abstractmethod
    def _helper_done(self, result: HelperResult) -> None:
        """The helper has ended."""

    def _fail(self, reason: str, rc: int) -> None:
        self._report.failed(reason, rc=rc)
        self._do_join(self._join.fail(rc))

    def _do_join(self, actions: tuple[JoinAction, ...]) -> None:
        for action in actions:
            match action:
                case join.Abort(Task.STREAM, rc):
                    self._abort_stream(rc)
                case join.Abort(Task.HELPER, rc):
                    if self._helper is not None:
                        self._helper.abort(int(rc), self._report.reason)
                case join.Unwind():
                    self._do_join(self._join.unwound())
                case join.Complete(rc):
                    self._joined(rc)

    def _run_helper(
        self,
        request: HelperRequest,
        callbacks: Mapping[str, Callable[..., int | None]],
        admission: float = 0.0,
    ) -> None:
        """Start the helper, with `callbacks` beside those of every operation; `admission` as for
        `HelperLaunch`."""
        self._join.started(Task.HELPER)
        self._helper = SaveHelper(
            request,
            {
                "log": self._report.log_callback,
                "progress": self._report.progress_callback,
                **callbacks,
            },
            self._helper_done,
            limits=self._ctx.limits,
            trace=self._ctx.trace,
            program=self._ctx.program,
            faults=self._ctx.faults,
            admission=admission,
            waits=self._ctx.warn,
            stood_still=partial(standstill.tell, self._ctx, standstill.HELPER),
        )
        self._helper.start()

    def _answer(self, callback: str, value: int) -> None:
        """Answer the async `callback`, where the helper still waits for it: an aborted one has
        been refused, and may be waiting for the answer to another."""
        if self._helper is not None:
            self._helper.async_callback_done(value, callback)

    def _past_return(self) -> None:
        """The guest's newest state may be at the destination alone from here on."""
        if self._helper is not None:
            self._helper.wait_for_ever()

    async def _tasks_ended(self) -> None:
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = spawn(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (fault := task.exception()) is None:
            return
        self._faulted(fault)

    def _faulted(self, fault: BaseException) -> None:
        """A fault of the program ends the operation in order, too, and is raised then."""
        self._fault = self._fault or fault
        self._fail(f"fault: {fault!r}", Error.FAIL)
