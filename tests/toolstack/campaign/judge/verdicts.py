"""Verdicts that no run has made, for reports."""

from __future__ import annotations

from typing import Any

from xen_save_helper.ipc_schema.faults.plan import parse
from xen_save_helper.toolstack.campaign.campaign import USUAL_GUEST
from xen_save_helper.toolstack.campaign.report.figures import Report
from xen_save_helper.toolstack.campaign.run import Verdict

EVENTS: tuple[dict[str, Any], ...] = (
    {"t": 10.0, "pid": 1, "process": "controller", "event": "save", "domid": 1},
    {"t": 10.1, "pid": 1, "process": "controller", "event": "helper_started", "helper": 2},
    {"t": 10.2, "pid": 2, "process": "helper", "event": "start", "operation": "save"},
    {"t": 10.3, "pid": 3, "process": "receiver", "event": "handshake", "action": "send the banner"},
    {"t": 10.4, "pid": 3, "process": "receiver", "event": "helper_started", "helper": 4},
    {"t": 10.5, "pid": 4, "process": "helper", "event": "fault", "fault": "f", "point": "start"},
    {"t": 10.75, "pid": 1, "process": "controller", "event": "failure", "reason": "it is dead"},
)


def verdict(plan: str, mode: str = "live", kind: str = "holds", **more: Any) -> Verdict:
    fields: dict[str, Any] = {
        "plan": plan,
        "mode": mode,
        "seed": 7,
        "fired": () if kind == "did not fire" else tuple(map(str, parse(plan).faults)),
        "holds": kind == "holds",
        "problems": ("it is wrong",) if kind == "fails" else (),
        "expected": "exit code 1",
        "seen": {"exit code": 1},
        "seconds": 1.5,
        "events": EVENTS,
    }
    return Verdict(**{**fields, **more})


def report(
    *verdicts: Verdict, missing: int = 0, must_fire: bool = True, title: str = "A title"
) -> Report:
    return Report(
        title,
        "1.2.3",
        len(verdicts) + missing,
        verdicts,
        must_fire,
        USUAL_GUEST,
        lambda verdict: verdict.events,
    )
