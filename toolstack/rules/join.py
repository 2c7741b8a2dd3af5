"""The join of a stream and its helper: `check_all_finished` of libxl_stream_write.c and _read.c.

Both run at once; the operation completes once, when both have stopped, with the first failure's
rc. The first failure aborts what still runs. An abort may stop its task at once, on top of the
caller, or later; what is reported in the meantime is noted and does nothing else, and the
outermost entry completes the operation when the stack has unwound.

| event              | guard set | first failure            | otherwise                        |
|--------------------|-----------|--------------------------|----------------------------------|
| `stopped(task, rc)`| task gone | keep rc, AbortTask*, Unwind  | task gone; Complete once none is |
| `fail(rc)`         | nothing   | keep rc, AbortTask*, Unwind  | nothing                          |
| `unwound()`        | guard off; Complete once no task is left                                |
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Task(Enum):
    """What is joined, in the order in which libxl aborts it."""

    STREAM = "stream"
    HELPER = "helper"


@dataclass(frozen=True)
class AbortTask:
    """Abort `task`; it reports `stopped` when it has stopped, now or later."""

    task: Task
    rc: int


@dataclass(frozen=True)
class Unwind:
    """The aborts have been made: report `unwound`."""


@dataclass(frozen=True)
class Complete:
    """All tasks have stopped: the operation ends with `rc`."""

    rc: int


JoinAction = AbortTask | Unwind | Complete


class Join:
    """Event in, actions out. Carry them out at once and in order; that may bring further events on
    top. `rc` is 0 until the first failure."""

    def __init__(self) -> None:
        self.rc = 0
        self.completed = False
        self._running: set[Task] = set()
        self._sync_teardown = False

    def started(self, task: Task) -> None:
        """`task` runs from here on. Raises RuntimeError once the operation has failed or ended."""
        if self.rc or self.completed:
            raise RuntimeError(f"the {task.value} started after the operation failed or ended")
        self._running.add(task)

    def running(self, task: Task) -> bool:
        return task in self._running

    def stopped(self, task: Task, rc: int) -> tuple[JoinAction, ...]:
        """`task` has stopped. Raises RuntimeError if it does not run."""
        if task not in self._running:
            raise RuntimeError(f"the {task.value} stopped, but was not running")
        self._running.remove(task)
        return self._check(rc)

    def fail(self, rc: int) -> tuple[JoinAction, ...]:
        """Something besides the tasks failed, or the caller gave up."""
        return self._check(rc)

    def unwound(self) -> tuple[JoinAction, ...]:
        """The aborts of the first failure have been made."""
        self._sync_teardown = False
        return self._check(0)

    def _check(self, rc: int) -> tuple[JoinAction, ...]:
        if self._sync_teardown or self.completed:
            return ()
        if rc and not self.rc:
            self.rc = rc
            self._sync_teardown = True
            aborts = (AbortTask(task, rc) for task in Task if task in self._running)
            return (*aborts, Unwind())
        if self._running:
            return ()
        self.completed = True
        return (Complete(self.rc),)
