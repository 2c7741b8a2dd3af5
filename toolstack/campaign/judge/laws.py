"""What must be true of every run: an end in time with the right exit code and a line that says why;
one guest in one place; and nothing left behind."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from xen_save_helper.ipc_schema.control import Role
from xen_save_helper.ipc_schema.faults import actions
from xen_save_helper.ipc_schema.faults.points import Side, Who
from xen_save_helper.toolstack.campaign.evidence import NAME, Again, Ended, Guest, Mode, Scene
from xen_save_helper.toolstack.campaign.judge.case import HERE, THERE, Case
from xen_save_helper.toolstack.campaign.judge.expectation import Effect, Spoils

AWAY: Final = f"{NAME}--migratedaway"
INCONSISTENT: Final = f"{NAME}--postcopy-inconsistent"
WAITING: Final = frozenset({AWAY, INCONSISTENT})
"""Names under which a suspended guest waits for a person to look at the other side."""
OUTLIVING: Final = tuple(f"control/{role.value}-" for role in (Role.PAGE_SERVER, Role.PAGER))
"""How the names of files of what outlives a migration begin; see `link_laws`."""
_LINK: Final = frozenset({Who.PAGE_SERVER, Who.PAGER, Who.TUNNEL})
_PATIENCE: Final = 2.0
"""Seconds that the processes of a command may take to end after it."""


def general(case: Case) -> Iterator[str]:
    """Yield a line for each thing that is wrong."""
    yield from _in_time(case)
    yield from _exit_codes(case)
    yield from _one_place(case)
    yield from _nothing_left(case)
    yield from _documents(case)


def _in_time(case: Case) -> Iterator[str]:
    for one in case.commands:
        if one.late:
            yield f"{one.command} did not end within {case.evidence.limit:g} s"
    yield from _at_once(case)
    for one in (*case.evidence.recoveries, *case.evidence.persons):
        if one.late:
            yield f"{one.command} did not end"


def _at_once(case: Case) -> Iterator[str]:
    """A command that fails ends once the limits have passed after which the failure is noticed."""
    for one, side in zip(case.commands, (HERE, THERE), strict=False):
        fails = [fired.at for fired in case.of(side) if fired.what.effect is Effect.FAILS]
        began = [event["t"] for event in case.evidence.events if event["pid"] == one.pid]
        if one.late or case.somebody_dies or not (fails and began):
            continue
        took, patience = one.seconds - (fails[0] - began[0]), case.patience
        if took > patience:
            yield f"{one.command} ended {took:.1f} s after the fault; {patience:g} s are enough"


def _exit_codes(case: Case) -> Iterator[str]:
    command, restore = case.evidence.command, case.evidence.restore
    if not case.dead(HERE) and not command.late and command.code not in case.allowed:
        yield f"{command.command} exited with {command.code}; right is {listed(case.allowed)}"
    if restore is not None and not case.dead(THERE) and not restore.late:
        right = case.restore_allowed
        if restore.code not in right:
            yield f"restore exited with {restore.code}; right is {listed(right)}"


def _one_place(case: Case) -> Iterator[str]:
    evidence = case.evidence
    for scene in evidence.ends:
        # `recover` mends what a dead controller leaves; nobody can mend two guests that run.
        yield from (f"at the command's end {what}" for what in _two_run(scene))
        if not case.somebody_dies:
            for guest in scene.guests():
                yield from (f"at the command's end {what}" for what in _half_done(guest))
    scenes = {"in the end": evidence.recovered, "after a person has chosen": evidence.last}
    if evidence.after_save is not None:
        scenes = {"after the save": evidence.after_save, **scenes}
    for when, scene in scenes.items():
        yield from (f"{when} {what}" for what in _two_run(scene))
        for side, place in scene.places.items():
            for guest in place.guests:
                yield from (f"{when} {what}" for what in _half_done(guest))
                yield from (f"{when} {what}" for what in _unsound(case, guest, side))
    yield from _both_ran(case)
    yield from _given_up(case)
    if not evidence.last.running() and not case.guest_dies:
        yield from _lost(case)


def _two_run(scene: Scene) -> Iterator[str]:
    if len(scene.running()) > 1:
        yield f"two guests run: {places(scene)}"


def _half_done(guest: Guest) -> Iterator[str]:
    """The guest is left in the middle of an operation, and not for a person to decide."""
    if guest.log_dirty:
        yield f"{guest} is in log-dirty mode"
    if guest.name.endswith("--incoming"):
        yield f"a partial copy is left: {guest}"
    waits = guest.state == "suspended" and guest.name in WAITING
    if not (guest.runs or waits or guest.state == "crashed"):
        yield f"{guest} is left so"


def _unsound(case: Case, guest: Guest, side: Side) -> Iterator[str]:
    """Yield what is wrong with a guest at a side."""
    bad = guest.memory_ok is not True or guest.crash
    if case.pages_lost and side is THERE:
        return  # it cannot live, and may not have come to where it lacks something
    if guest.runs and bad and not case.spoils(side, Spoils.MEMORY):
        yield f"the memory of {guest} is wrong: {guest.crash or 'unverified'}"
    if guest.state == "crashed" and not (case.guest_dies or case.may_crash(side)):
        yield f"{guest}: {guest.crash}"


def _both_ran(case: Case) -> Iterator[str]:
    """A guest that has run at the destination differs from that at the source. Once it is promised,
    nobody at the source can know that it has not run."""
    here = case.evidence.recovered.places[HERE].guest(NAME)
    if here is None or not here.runs:
        return
    if case.stages.ran_there:
        yield "the guest was resumed at the source after it had run at the destination"
    elif case.stages.promised:
        yield "the guest was resumed at the source when it might run at the destination"


def _given_up(case: Case) -> Iterator[str]:
    """A guest that was whole at the destination stays there, whichever process dies."""
    last = case.evidence.last
    there = last.places[THERE]
    if case.stages.whole_there and not (there.guests or case.guest_dies or case.crashed_there):
        yield f"the guest was whole at the destination, and was given up: {places(last)}"


def _lost(case: Case) -> Iterator[str]:
    evidence = case.evidence
    good = case.file_corrupted or _whole(evidence.restored_again)
    if (evidence.last.saved and good) or case.crashed_there:
        return
    again = evidence.restored_again
    tried = "" if again is None else f"; restored again without faults: {again}"
    yield f"the guest is lost: {places(evidence.last)}{tried}"


def _whole(again: Again | None) -> bool:
    """Whether a restore without faults has brought the guest back as it was."""
    if again is None or again.command.code or len(again.guests) != 1:
        return False
    (guest,) = again.guests
    return guest.name == NAME and guest.runs and guest.memory_ok is True and not guest.crash


def _nothing_left(case: Case) -> Iterator[str]:
    evidence = case.evidence
    scenes = [*(("its end", scene) for scene in evidence.ends), ("recover", evidence.recovered)]
    for when, scene in scenes:
        for process in scene.processes:
            yield f"a process was left after {when}: {process}"
    # The next command sweeps what a killed controller leaves.
    if not case.somebody_dies:
        for name in (name for scene in evidence.ends for name in scene.temporary):
            yield f"a temporary file was left: {name}"
        ended = evidence.command.code in {0, 1, 5} and not _left_to_recover(case)
        if _journals(case) and ended:
            yield "a journal was left of what had ended"
        for scene in evidence.ends:
            if scene.lingered > _patience(case) and not scene.processes:
                yield f"a process was there for {scene.lingered:g} s after the command's end"
    swept = {"`recover`": evidence.recovered, "all": evidence.last}
    for when, scene in swept.items():
        for name in scene.temporary:
            yield f"a temporary file was left after {when}: {name}"
    for side, place in evidence.last.places.items():
        for name in place.files:
            yield f"a file was left at the {side.value}: {name}"
    for side, place in evidence.recovered.places.items():
        for name in place.files:
            if not name.endswith(".journal") and not name.startswith(OUTLIVING):
                yield f"a file was left at the {side.value}: {name}"
    yield from _descriptors(case)


def _patience(case: Case) -> float:
    """A page server and a pager need nobody, and have their own time; the helper that has restored
    the guest goes on as a pager."""
    of_pager = any(one.side is THERE and one.fault.point.who is Who.HELPER for one in case.fired)
    of_link = any(one.fault.point.who in _LINK for one in case.fired)
    alone = case.evidence.command.code or of_pager or of_link
    return math.inf if case.evidence.mode is Mode.LINK and alone else _PATIENCE


def _left_to_recover(case: Case) -> bool:
    """Whether the sender's controller was told to end when only last pages were still to go, which
    need it no longer: `recover` destroys what has held them."""
    told = [one for one in case.fired if one.side is HERE and one.fault.point.who is Who.CONTROLLER]
    asked = any(one.fault.action.kind is actions.SIGNAL for one in told)
    return case.evidence.mode is Mode.LINK and asked and case.stages.ran_there


def _journals(case: Case) -> bool:
    places = (place for scene in case.evidence.ends for place in scene.places.values())
    return any(place.journals for place in places)


def _descriptors(case: Case) -> Iterator[str]:
    """If the guest runs on at the source, no helper is still connected to it."""
    guest = case.evidence.last.places[HERE].guest(NAME)
    if guest is None:
        return
    before, after = (
        sorted(_kind_of(what) for what in table.values())
        for table in (case.evidence.descriptors_before, guest.descriptors)
    )
    if len(after) > len(before):
        extra = list(after)
        for kind in before:
            if kind in extra:
                extra.remove(kind)
        yield f"the guest's process was left with descriptors: {', '.join(extra)}"


def _documents(case: Case) -> Iterator[str]:
    for one in case.commands:
        if one.out and document(one) is None:
            yield f"{one.command} printed something other than one JSON document: {one.out[:80]!r}"


def words(case: Case) -> Iterator[str]:
    """Yield what is wrong with the lines that the commands print on stderr."""
    for one in (*case.commands, *case.evidence.recoveries, *case.evidence.persons):
        if "Traceback" in one.err:
            yield f"{one.command} ended in a traceback: {one.err.strip().splitlines()[-1]}"
    for one, side in zip(case.commands, (HERE, THERE), strict=False):
        failed = one.code > 0 and not (case.dead(side) or one.late)
        if failed and not any(line.startswith("xen-toolstack: ") for line in one.err.splitlines()):
            yield f"{one.command} failed, and said nothing"


def document(ended: Ended) -> dict[str, Any] | None:
    try:
        found = json.loads(ended.out)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def listed(codes: set[int] | frozenset[int]) -> str:
    return " or ".join(map(str, sorted(codes))) or "none"


def places(scene: Scene) -> str:
    return "; ".join(f"{place} at the {side.value}" for side, place in scene.places.items())


def _kind_of(target: str) -> str:
    return re.sub(r"\[\d+\]|/domains/.*", "", target)
