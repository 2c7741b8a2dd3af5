"""One run with a plan in force: real processes on two simulated hosts, and the oracle's verdict."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.judge.oracle import judge
from xen_save_helper.toolstack.campaign.play import RunStage
from xen_save_helper.toolstack.limits import Limits

FAULT_LIMITS: Final = Limits(
    helper_start=10,
    stopped=2,
    callback=6,
    suspend=3,
    abort=2,
    stream_stall=4,
    admission=8,
    handshake=8,
    ready=8,
)
"""Limits of seconds, not minutes, until something that stands still is noticed."""


@dataclass(frozen=True)
class FaultRun:
    """What to run. `memory` is the guest's in bytes, `workload` one of a simulated guest.
    `directory` is empty and belongs to the run: it keeps what a person may want to look at."""

    plan: Plan
    mode: Mode
    memory: int
    workload: str
    directory: Path


@dataclass(frozen=True)
class Verdict:
    """How a run ended. `plan` has its seed. `fired` are the faults that struck, in order;
    `problems` has a line for each thing that is wrong; `expected` is what would be right, `seen`
    what was."""

    plan: str
    mode: str
    seed: int
    fired: tuple[str, ...]
    holds: bool
    problems: tuple[str, ...]
    expected: str
    seen: Mapping[str, object]
    seconds: float
    events: tuple[dict[str, Any], ...]

    @property
    def kind(self) -> str:
        """`holds`, `fails`, or `did not fire`: then nothing was tried, and nothing went wrong."""
        if self.holds:
            return "holds"
        return "fails" if self.problems else "did not fire"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Raises TypeError for fields that `as_json` has not made."""
        listed = {name: tuple(fields[name]) for name in ("fired", "problems", "events")}
        return cls(**{**fields, **listed})

    def __str__(self) -> str:
        return json.dumps(self.as_json(), default=str)


def run_fault(run: FaultRun, *, limits: Limits = FAULT_LIMITS) -> Verdict:
    """Carry out `run` and judge it; each wait has a limit, and nothing that it starts stays.

    A plan without a seed gets one, which the verdict has: all chance in the run comes from it, the
    guest's memory included. Raises ValueError if the directory's path is too long for sockets, and
    OSError if the run cannot begin.
    """
    started = time.monotonic()
    plan = run.plan.seeded()
    assert plan.seed is not None
    counted = plan.counting_in(str(run.directory.absolute() / "counts"))
    with RunStage(counted, run.mode, run.memory, run.workload, run.directory, limits) as stage:
        evidence = stage.play()
    judgement = judge(plan, evidence, limits)
    return Verdict(
        plan=str(plan),
        mode=run.mode.value,
        seed=plan.seed,
        fired=judgement.fired,
        holds=bool(judgement.fired) and not judgement.problems,
        problems=judgement.problems,
        expected=judgement.expected,
        seen=judgement.seen,
        seconds=round(time.monotonic() - started, 3),
        events=tuple(dict(event) for event in evidence.events),
    )
