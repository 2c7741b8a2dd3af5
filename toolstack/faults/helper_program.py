"""Our save helper with a plan of faults, as a program that anybody can start."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Any

from xen_save_helper.ipc_schema import variables
from xen_save_helper.ipc_schema.faults.actions import on_pipe
from xen_save_helper.ipc_schema.faults.plan import Plan, PlanError, parse
from xen_save_helper.ipc_schema.faults.points import Who
from xen_save_helper.toolstack.faults.environments import having
from xen_save_helper.toolstack.helpers.request import HelperProgram, OwnHelper


def helper_plan(text: str) -> Plan:
    """A plan with faults of the helper only. Raises PlanError."""
    plan = parse(text)
    for fault in plan.faults:
        who = fault.point.who
        if who is not Who.HELPER:
            raise PlanError(
                f"'{fault}': that is done by the {who.value}, and here only the helper has faults; "
                "`xen-toolstack faults run` has them all"
            )
    return plan


class FaultyHelper:
    """Our helper with `plan`, or without faults for None; a plan without a seed gets one.

    Everything that it needs is in `directory`, which must exist and be empty, and stays the
    caller's. `kill` ends the helpers that were started.
    """

    def __init__(self, directory: Path, plan: Plan | None = None) -> None:
        """Raises OSError."""
        if plan is not None:
            plan = plan.seeded().counting_in(str(directory.absolute() / "counts"))
        self.plan = plan
        self.directory = directory
        self._events = directory / "events"
        self._program = directory / "xen-save-helper"
        self._others: list[FaultyHelper] = []
        set_plan = (
            f"unset {variables.FAULTS}" if plan is None else _export(variables.FAULTS, str(plan))
        )
        helper = shlex.join([sys.executable, "-P", "-m", "xen_save_helper.helper.main"])
        lines = (
            "#!/bin/sh",
            set_plan,
            _export(variables.EVENTS, str(self._events)),
            f'exec {helper} "$@"',
        )
        self._program.write_text("".join(f"{line}\n" for line in lines))
        self._program.chmod(0o700)

    @property
    def program(self) -> HelperProgram:
        """The helper for a `Context` of our API."""
        return OwnHelper((str(self._program),))

    @property
    def executable(self) -> Path:
        """The helper for LIBXL_SAVE_HELPER, or `xen-toolstack --helper`: it speaks libxl's
        protocol.

        Raises PlanError for a fault that cannot be on libxl's pipes.
        """
        for fault in self.plan.faults if self.plan else ():
            if not on_pipe(fault.point, fault.action.kind):
                raise PlanError(f"'{fault}': there is no such thing on libxl's pipes")
        return self._program

    @property
    def events(self) -> list[dict[str, Any]]:
        """The trace of the helpers so far (see `ipc_schema.trace`)."""
        try:
            text = self._events.read_bytes()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines(keepends=True) if line[-1:] == b"\n"]

    @property
    def fired(self) -> list[str]:
        """The faults that have fired so far, as they are typed, in order."""
        return [event["fault"] for event in self.events if event["event"] == "fault"]

    def with_plan(self, text: str) -> FaultyHelper:
        """Another helper with the plan `text`, for the other side or the next step of a test.
        Raises PlanError, OSError."""
        plan = helper_plan(text)
        directory = self.directory / f"other-{len(self._others)}"
        directory.mkdir()
        self._others.append(FaultyHelper(directory, plan))
        return self._others[-1]

    def kill(self) -> None:
        """Send SIGKILL to helpers that still exist: a stopped one would stay for ever."""
        for pid in having(f"{variables.EVENTS}={self._events}"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for other in self._others:
            other.kill()


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"
