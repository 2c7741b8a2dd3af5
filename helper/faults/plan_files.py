"""The files of a plan: its text, and the counts of all processes that carry it out.

The counts are a JSON object by fault, and locked while one is changed. To begin anew, remove the
file."""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Final

from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError, parse

_LONGEST: Final = 1 << 20
"""Bytes of the counts that are read, far more than any plan needs."""


def read_plan(given: str) -> Plan:
    """The plan in `given`, as the environment, an option or a settings file has it, or in the file
    that it names after an `@`. Raises PlanError."""
    if not given.startswith("@"):
        return parse(given)
    try:
        text = Path(given[1:]).read_text()
    except (OSError, UnicodeDecodeError) as bad:
        raise PlanError(f"{given}: {getattr(bad, 'strerror', None) or bad}") from None
    try:
        return parse(text).counting_in(f"{os.path.abspath(given[1:])}.counts")
    except PlanError as bad:
        raise PlanError(f"{given}: {bad}") from None


class SharedCounts:
    """The counts in the file at `path`, which is created if it is missing.

    Raises PlanError if it cannot be created or holds something else.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self.next("", 0)
        except (OSError, ValueError) as bad:
            why = getattr(bad, "strerror", None) or "it holds no counts of faults"
            raise PlanError(f"counts={path}: {why}") from None

    def next(self, fault: str, times: int = 1) -> int:
        """Count that the point of `fault` is passed, and return how often it has been. Raises
        OSError, and ValueError if the file has been changed to something else."""
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.pread(fd, _LONGEST, 0)
            counts = json.loads(text) if text else {}
            if not isinstance(counts, dict) or set(map(type, counts.values())) - {int}:
                raise ValueError("not an object of counts")
            count: int = counts.get(fault, 0) + times
            if times:
                # The text never gets shorter, and one call writes it: a process that is killed
                # here has counted or has not.
                os.pwrite(fd, json.dumps({**counts, fault: count}).encode(), 0)
        finally:
            os.close(fd)
        return count


def counts_of(plan: Plan) -> SharedCounts | None:
    """The counts of a plan that counts over all processes; None for others. Raises PlanError."""
    for fault in plan.faults:
        if fault.times.of_all:
            if plan.counts is None:
                raise PlanError(
                    f"'{fault}': `of all` counts in a file: name one in the plan, as in "
                    "counts=/tmp/counts"
                )
            return SharedCounts(plan.counts)
    return None
