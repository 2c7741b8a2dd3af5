"""Runs for the tests of the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests import trace_lines
from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.toolstack.campaign.evidence import Mode
from xen_save_helper.toolstack.campaign.run import FaultRun, Verdict, run_fault
from xen_save_helper.toolstack.limits import Limits

LIMITS = Limits(
    helper_start=10,
    stopped=2,
    callback=4,
    suspend=2,
    abort=2,
    stream_stall=3,
    admission=5,
    handshake=5,
    ready=5,
)


def run(plan: str, mode: str, workload: str = "random", limits: Limits = LIMITS) -> Verdict:
    """Judge a run of 2 MiB."""
    with tempfile.TemporaryDirectory(prefix="xf-") as directory:
        given = FaultRun(parse(plan), Mode(mode), 2 << 20, workload, Path(directory))
        verdict = run_fault(given, limits=limits)
    trace_lines.check(verdict.events)
    print(verdict.plan, verdict.fired, verdict.expected, verdict.seen, *verdict.problems, sep="\n")
    return verdict
