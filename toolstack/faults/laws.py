"""What must be true of every run: an end in time, with a right exit code and a word of the cause;
one guest at one place; one end of each helper; and nothing left behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from ipc_schema.fault_points import Side
from toolstack.faults.case import HERE, THERE, Case
from toolstack.faults.effects import Effect
from toolstack.faults.evidence import Ended, Guest, Scene

NAME: Final = "g"
"""The guest's."""


def general(case: Case) -> Iterator[str]:
    """What is wrong, a line for each."""
    yield from _in_time(case)
    yield from _exit_codes(case)
    yield from _one_place(case)
    yield from _nothing_left(case)
    yield from _completions(case)


def _in_time(case: Case) -> Iterator[str]:
    for one in case.commands:
        if one.late:
            yield f"{one.command} did not end within {case.evidence.limit:g} s"
    for one in (*case.evidence.recoveries, *case.evidence.persons):
        if one.late:
            yield f"{one.command} did not end"


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
    scenes = {"in the end": evidence.recovered, "after a person has chosen": evidence.last}
    if evidence.after_save is not None:
        scenes = {"after the save": evidence.after_save, **scenes}
    for when, scene in scenes.items():
        running = scene.running()
        if len(running) > 1:
            yield f"{when} two guests run: {places(scene)}"
        for side, place in scene.places.items():
            for guest in place.guests:
                yield from (f"{when} {what}" for what in _unsound(case, guest, side))
    yield from _both_ran(case)
    if not evidence.last.running() and not case.guest_dies:
        yield from _lost(case)


def _unsound(case: Case, guest: Guest, side: Side) -> Iterator[str]:
    """What is wrong with a guest at a side."""
    bad = guest.memory_ok is not True or guest.crash
    if guest.runs and bad and not case.corrupts(side):
        yield f"the memory of {guest} is wrong: {guest.crash or 'unverified'}"
    if guest.log_dirty:
        yield f"{guest} is in log-dirty mode"
    if guest.state == "crashed" and not (case.guest_dies or case.corrupts(side)):
        yield f"{guest}: {guest.crash}"
    if guest.name.endswith("--incoming"):
        yield f"a partial copy is left: {guest}"


def _both_ran(case: Case) -> Iterator[str]:
    """A guest that has run at the destination is another one than that at the source."""
    here = case.evidence.recovered.places[HERE].guest(NAME)
    if here is not None and here.runs and case.stages.ran_there:
        yield "the guest was resumed at the source after it had run at the destination"


def _lost(case: Case) -> Iterator[str]:
    evidence = case.evidence
    # What nothing protects in a file may be such that no guest can be made of it.
    good = evidence.restored_again is not None or case.corrupting
    if (evidence.last.saved and good) or case.crashed_there:
        return
    yield f"the guest is lost: {places(evidence.last)}"


def _nothing_left(case: Case) -> Iterator[str]:
    evidence = case.evidence
    for when, scene in (("its end", evidence.first), ("recover", evidence.recovered)):
        for process in scene.processes:
            yield f"a process was left after {when}: {process}"
    died = any(one.what.controller_dies for one in case.fired)
    if not died:
        # What a killed controller leaves is swept by the next command.
        for name in evidence.first.temporary:
            yield f"a temporary file was left: {name}"
        if evidence.recoveries and evidence.command.code in {0, 1, 5}:
            yield "a journal was left of what had ended"
    for side, place in evidence.last.places.items():
        for name in place.files:
            yield f"a file was left at the {side.value}: {name}"
    for side, place in evidence.recovered.places.items():
        for name in place.files:
            if not name.endswith(".journal"):
                yield f"a file was left at the {side.value}: {name}"
    yield from _descriptors(case)


def _descriptors(case: Case) -> Iterator[str]:
    """Of a guest that runs on at the source: nothing of a helper's is still connected to it."""
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


def _completions(case: Case) -> Iterator[str]:
    """Each helper that was started has ended, and was told of once."""
    evidence = case.evidence
    for side in Side:
        if case.dead(side):
            continue
        for pid in evidence.controllers(side):
            mine = [event for event in evidence.events if event["pid"] == pid]
            started = _count(mine, "helper started")
            for name in ("helper ended", "helper_ended"):
                if (ended := _count(mine, name)) != started and not case.killed(side):
                    yield f"{started} helpers started at the {side.value}, {ended} «{name}»"
            for name in ("save_ended", "restore_ended", "migrated", "received"):
                if _count(mine, name) > 1:
                    yield f"«{name}» {_count(mine, name)} times at the {side.value}"
            for name in ("save", "domain_created"):
                what = {"save": "save_ended", "domain_created": "restore_ended"}[name]
                if _count(mine, name) != _count(mine, what) and not case.killed(side):
                    yield f"«{name}» without «{what}» at the {side.value}"
        for event in evidence.named("helper started", side):
            told = [
                one
                for one in evidence.events
                if one["pid"] == event["helper"] and one["event"] == "complete"
            ]
            if len(told) > 1:
                yield f"helper {event['helper']} completed {len(told)} times"
    for one in case.commands:
        if one.out and document(one) is None:
            yield f"{one.command} printed other than one JSON document: {one.out[:80]!r}"


def words(case: Case) -> Iterator[str]:
    """What the commands say."""
    for one in (*case.commands, *case.evidence.recoveries, *case.evidence.persons):
        if "Traceback" in one.err:
            yield f"{one.command} ended in a traceback: {one.err.strip().splitlines()[-1]}"
    for one, side in zip(case.commands, (HERE, THERE), strict=False):
        if one.code <= 0 or case.dead(side) or one.late:
            continue
        lines = [line for line in one.err.splitlines() if line.startswith("xen-toolstack: ")]
        if not lines:
            yield f"{one.command} failed, and said nothing"
            continue
        causes = [f.what.words for f in case.fired if f.what.effect is not Effect.NONE]
        if causes and not any(re.search(cause, "\n".join(lines), re.I) for cause in causes):
            yield f"the error does not name the cause (want {' or '.join(causes)}): {lines[-1]}"


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


def _count(events: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(event["event"] == name for event in events)


def _kind_of(target: str) -> str:
    return re.sub(r"\[\d+\]|/domains/.*", "", target)
