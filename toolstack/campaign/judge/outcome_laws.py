"""What must be true of a migration, or of a save and its restore, by how it has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from xen_save_helper.toolstack.campaign.evidence import NAME, Guest
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE, Case
from xen_save_helper.toolstack.campaign.judge.laws import (
    AWAY,
    INCONSISTENT,
    WAITING,
    document,
    listed,
    places,
)

OUTCOMES: Final = {
    0: "success",
    1: "running-at-source",
    3: "postcopy-failed",
    4: "undefined",
    5: "guest-died",
}


def migrated(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong with a migration."""
    if case.dead(HERE):
        yield from _after_death(case)
        return
    command = case.evidence.command
    law = _LAWS.get(command.code)
    if law is not None:
        here, there = (case.evidence.recovered.places[side] for side in (HERE, THERE))
        for what, holds in law(case, here.guest, there.guest):
            if not holds:
                where = places(case.evidence.recovered)
                yield f"exit code {command.code}, but {what}: {where}"
    yield from _told(case)


def _after_death(case: Case) -> Iterator[str]:
    """The controller died: `recover` must have got it right."""
    scene = case.evidence.recovered
    here = scene.places[HERE]
    stages = case.stages
    bound = stages.go_said or stages.transition_begun
    if not bound and not case.guest_dies:
        guest = here.guest(NAME)
        if not (guest and guest.runs) or scene.places[THERE].guests:
            yield f"nothing was promised, but the guest does not run here alone: {places(scene)}"
    if bound and not scene.running():
        waits = [g for g in here.guests if g.name in WAITING]
        if not (waits and here.journals):
            yield f"the guest runs nowhere, and nothing says why: {places(scene)}"


def _told(case: Case) -> Iterator[str]:
    """What the command says of itself must be what was seen."""
    command = case.evidence.command
    said = document(command)
    if said is None or "outcome" not in said:
        if command.code in {0, 3, 4, 5} or (command.code == 1 and "error" not in (said or {})):
            yield f"{command.command} printed no result"
        return
    if said["outcome"] != OUTCOMES.get(command.code):
        yield f"it says {said['outcome']}, but exits with {command.code}"
    if (said["rc"] == 0) != (command.code == 0):
        yield f"it says rc {said['rc']}, but exits with {command.code}"
    yield from _rc(case, said["rc"])
    transitioned = said["postcopy_transitioned"]
    if transitioned not in case.stages.transitioned(command.code):
        yield f"it says that the postcopy transition was {transitioned}"
    if command.code and not said["reason"]:
        yield "it says no reason"


def _rc(case: Case, rc: int) -> Iterator[str]:
    """The code is that of the operation if that has failed, or else of what followed it."""
    codes = [event["rc"] for event in case.evidence.named("save_ended", HERE) if event["rc"]]
    if codes and rc != codes[0] and not (rc == 0 and case.stages.whole_there):
        yield f"it says rc {rc}, and the save's was {codes[0]}"
    right = case.rcs(HERE)
    if rc and not codes and right and rc not in right:
        yield f"rc {rc}; right is {listed(right)}"


def saved(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong with a save and its restore."""
    evidence = case.evidence
    after = evidence.after_save
    assert after is not None, "each save has a scene after it"
    here = after.places[HERE].guest(NAME)
    if case.dead(HERE):
        if not after.saved and not (here and here.runs):
            yield f"neither the guest nor its file is there: {places(after)}"
        return
    if evidence.command.code == 0:
        if not after.saved:
            yield "the save succeeded, but there is no file"
        if here is not None:
            yield f"the save succeeded, but {here} is still there"
    else:
        if after.saved:
            yield "the save failed, but there is a file"
        if not (here and here.runs) and not case.guest_dies:
            yield f"the save failed, and the guest does not run: {places(after)}"
    if evidence.restore is None or case.dead(THERE):
        return
    there = evidence.recovered.places[THERE].guest(NAME)
    if evidence.restore.code == 0 and not (there and (there.runs or case.crashed_there)):
        where = places(evidence.recovered)
        yield f"the restore succeeded, but the guest does not run: {where}"
    if evidence.restore.code and there is not None:
        yield f"the restore failed, but {there} is there"


Find = Callable[[str], Guest | None]


def _success(case: Case, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    guest = there(NAME)
    yield "the guest is still at the source", not case.evidence.recovered.places[HERE].guests
    yield (
        "the guest does not run at the destination",
        guest is not None and (guest.runs or case.crashed_there),
    )


def _at_source(case: Case, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(NAME)
    yield "a guest is at the destination", not case.evidence.recovered.places[THERE].guests
    yield "the guest does not run at the source", guest is not None and guest.runs


def _inconsistent(_case: Case, here: Find, _there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(INCONSISTENT)
    yield f"no {INCONSISTENT} is suspended", guest is not None and guest.state == "suspended"


def _undefined(_case: Case, here: Find, _there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(AWAY)
    yield f"no {AWAY} is suspended", guest is not None and guest.state == "suspended"


def _guest_died(case: Case, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    yield "a guest runs", not case.evidence.recovered.running()


_LAWS: Final[Mapping[int, Callable[[Case, Find, Find], Iterator[tuple[str, bool]]]]] = {
    0: _success,
    1: _at_source,
    3: _inconsistent,
    4: _undefined,
    5: _guest_died,
}
"""The laws on where the guest is, by the exit code of a migration."""
