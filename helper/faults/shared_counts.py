"""How often the points of faults were passed in all the processes that carry a plan out.

A file holds them, a JSON object by fault; who counts locks it for that moment. Who wants to begin
anew removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Final

from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError

_LONGEST: Final = 1 << 20
"""Bytes of the file that are read: far more than the counts of any plan."""


class SharedCounts:
    """The counts in the file at `path`, which is made where there is none.

    Raises PlanError where it cannot be, or holds something else.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._add("", 0)
        except (OSError, ValueError) as bad:
            why = getattr(bad, "strerror", None) or "it holds no counts of faults"
            raise PlanError(f"counts={path}: {why}") from None

    def next(self, fault: str) -> int:
        """The point of `fault` is passed: for the how manyth time. Raises OSError, and ValueError
        where somebody has put something else there meanwhile."""
        return self._add(fault, 1)

    def _add(self, fault: str, times: int) -> int:
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.pread(fd, _LONGEST, 0)
            counts = json.loads(text) if text else {}
            if not isinstance(counts, dict) or set(map(type, counts.values())) - {int}:
                raise ValueError("no object of counts")
            count: int = counts.get(fault, 0) + times
            if times:
                # It never gets shorter, and takes one call: a process that is killed here has
                # counted, or has not.
                os.pwrite(fd, json.dumps({**counts, fault: count}).encode(), 0)
        finally:
            os.close(fd)
        return count


def counts_of(plan: Plan) -> SharedCounts | None:
    """Those of a plan that counts over all processes; None for another. Raises PlanError."""
    for fault in plan.faults:
        if fault.times.of_all:
            if plan.counts is None:
                raise PlanError(
                    f"'{fault}': `of all` counts in a file: name one in the plan, as in "
                    "counts=/tmp/counts"
                )
            return SharedCounts(plan.counts)
    return None
