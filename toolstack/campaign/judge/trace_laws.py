"""What the trace must show of each operation: one end of its helper, one completion, the code of
the first failure, and a receiver that says what is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from xen_save_helper.ipc_schema.faults.points import Side
from xen_save_helper.toolstack.campaign.evidence import NAME, Event, Mode
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE, Case
from xen_save_helper.toolstack.campaign.judge.laws import listed, places

_ENDS: Final = {HERE: "save_ended", THERE: "restore_ended"}
_SAYS_STARTED: Final = frozenset({"report the start", "tell the end of postcopy"})


def traced(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    yield from _completions(case)
    for side in Side:
        if not case.dead(side):
            yield from _codes(case, side)
    if case.evidence.mode is not Mode.SAVE and not case.dead(THERE):
        yield from _receiver(case)


def _completions(case: Case) -> Iterator[str]:
    """Each helper that was started has ended once, and so has each operation."""
    evidence = case.evidence
    for side in Side:
        if case.dead(side):
            continue
        for pid in evidence.controllers(side):
            mine = [event for event in evidence.events if event["pid"] == pid]
            started = _count(mine, "helper_started")
            for name in ("helper_exited", "helper_result"):
                if (ended := _count(mine, name)) != started and not case.killed(side):
                    yield f"{started} helpers started at the {side.value}, {ended} «{name}»"
            for name in ("save_ended", "restore_ended", "migrated", "received"):
                if _count(mine, name) > 1:
                    yield f"«{name}» {_count(mine, name)} times at the {side.value}"
            for name in ("save", "domain_created"):
                what = {"save": "save_ended", "domain_created": "restore_ended"}[name]
                if _count(mine, name) != _count(mine, what) and not case.killed(side):
                    yield f"«{name}» without «{what}» at the {side.value}"
        for event in evidence.named("helper_started", side):
            told = [
                one
                for one in evidence.events
                if one["pid"] == event["helper"] and one["event"] == "complete"
            ]
            if len(told) > 1:
                yield f"helper {event['helper']} completed {len(told)} times"


def _codes(case: Case, side: Side) -> Iterator[str]:
    """The code of the operation at a side is that of its first failure."""
    right = case.rcs(side)
    for event in case.evidence.named(_ENDS[side], side):
        rc = event["rc"]
        if rc and right and rc not in right:
            yield f"rc {rc} at the {side.value}; right is {listed(right)}"
        # Once the destination has everything, its word counts, whatever goes wrong here.
        excused = case.stages.whole_there
        if rc and side is HERE and case.evidence.command.code == 0 and not excused:
            yield f"{case.evidence.command.command} exited with 0, though rc is {rc}"


def _receiver(case: Case) -> Iterator[str]:
    ended = case.evidence.named("receiver_exited", HERE)
    if not case.evidence.controllers(THERE) or not ended:
        return
    status = ended[0]["status"]
    received = case.evidence.named("received", THERE)
    if status >= 0 and not received:
        yield f"the receiver exited with {status}, and completed nothing"
    for event in received:
        yield from _said(case, event, status)


def _said(case: Case, event: Event, status: int) -> Iterator[str]:
    started, rc = event["started"], event["rc"]
    if status >= 0 and status != (not started):
        yield f"the receiver exited with {status}, and said that started is {started}"
    if started and rc and not _unsaid(case):
        yield f"the receiver said that the guest is started, and rc {rc}"
    if not started and not (rc and event["reason"]):
        yield f"the receiver failed with rc {rc}, for the reason {event['reason']!r}"
    right = case.rcs(THERE)
    if not started and right and rc not in right:
        yield f"the receiver's rc is {rc}; right is {listed(right)}"
    scene = case.evidence.ends[-1]
    if started != (scene.places[THERE].guest(NAME) is not None):
        yield f"the receiver said that started is {started}: {places(scene)}"


def _unsaid(case: Case) -> bool:
    """Whether the receiver could no longer say that its guest runs."""
    return any(
        event["action"] in _SAYS_STARTED and event.get("result") == "failed"
        for event in case.evidence.named("handshake", THERE)
    )


def _count(events: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(event["event"] == name for event in events)
