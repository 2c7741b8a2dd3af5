"""The oracle: what must be true at the end of a run for the faults that struck, and what is not.

It looks at the evidence alone: exit codes, the process table, the guests, the files, and the trace.
What a controller says of itself (its JSON, its error) is only compared with that. The rules are
those of reference/teardown.md and of design.md, «One guest, one place»; no table of the
controller's is read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from ipc_schema.fault_plan import Fault, Plan
from ipc_schema.fault_points import Side, Who
from toolstack.faults.effects import GUEST_TIMEDOUT, Effect, Expectation, expectation
from toolstack.faults.evidence import Ended, Evidence, Guest, Mode, Scene
from toolstack.faults.guest_faults import of_guest
from toolstack.limits import Limits

NAME: Final = "g"
_AWAY: Final = f"{NAME}--migratedaway"
_INCONSISTENT: Final = f"{NAME}--postcopy-inconsistent"
_OUTCOMES: Final = {
    0: "success",
    1: "running-at-source",
    3: "postcopy-failed",
    4: "undefined",
    5: "guest-died",
}
_SAYS_GO: Final = "give the destination permission to start"
_HERE, _THERE = Side.SOURCE, Side.DESTINATION


@dataclass(frozen=True)
class Judgement:
    """See `run.Verdict`."""

    fired: tuple[str, ...]
    problems: tuple[str, ...]
    expected: str
    seen: Mapping[str, object]


@dataclass(frozen=True)
class _Fired:
    fault: Fault
    side: Side | None
    what: Expectation
    after_go: bool
    """It struck when the destination may have been let go, or nobody knows when."""


def judge(plan: Plan, evidence: Evidence, limits: Limits) -> Judgement:
    fired = list(_fired(plan, evidence, limits))
    oracle = _Oracle(evidence, fired)
    problems = tuple(dict.fromkeys(oracle.problems()))
    return Judgement(
        fired=tuple(dict.fromkeys(_named(one) for one in fired)),
        problems=problems,
        expected=oracle.expected,
        seen=_seen(evidence),
    )


def _named(one: _Fired) -> str:
    """A fault as it is typed, with the side where it struck."""
    text = str(one.fault)
    if one.side is None or one.fault.side is not None:
        return text
    return f"{one.side.value}{'/' if one.fault.point.who is Who.HELPER else '.'}{text}"


def _fired(plan: Plan, evidence: Evidence, limits: Limits) -> Iterator[_Fired]:
    """In the order in which they struck."""
    by_text = {str(fault): fault for fault in plan.faults}
    after_go = False
    for event in evidence.events:
        after_go = after_go or _is_go(event)
        if event["event"] == "fault":
            fault = by_text[event["fault"]]
            side = next((side for side in Side if event["pid"] in evidence.of(side)), None)
            late = after_go or fault.point.who is Who.LINK
            yield _Fired(fault, side, expectation(fault, limits), late)
        elif event["event"] == "suspend_request":
            # A guest behaves in one way: the last that it was told.
            for fault in of_guest(plan)[-1:]:
                yield _Fired(fault, _HERE, expectation(fault, limits), after_go)


def _seen(evidence: Evidence) -> dict[str, object]:
    seen: dict[str, object] = {"exit code": evidence.command.code}
    if evidence.restore is not None:
        seen["restore's exit code"] = evidence.restore.code
    for side, place in evidence.recovered.places.items():
        seen[f"at the {side.value}"] = str(place)
    for one in (evidence.command, evidence.restore):
        if one is not None and one.err:
            seen[f"{one.command} said"] = one.err.strip().splitlines()[-1]
    recoveries = [one.out.strip() or one.err.strip() for one in evidence.recoveries]
    if recoveries:
        seen["recover said"] = recoveries
    if evidence.persons:
        seen["then"] = str(evidence.last.places[_HERE])
    return seen


class _Oracle:
    def __init__(self, evidence: Evidence, fired: Sequence[_Fired]) -> None:
        self._evidence = evidence
        self._fired = fired
        self._corrupts = any(one.what.corrupts for one in fired)
        self._guest_dies = any(one.what.guest_dies for one in fired)
        self._stages = _Stages(evidence)
        self._allowed = self._exits()

    @property
    def expected(self) -> str:
        codes = ", ".join(f"{code} ({_OUTCOMES[code]})" for code in sorted(self._allowed))
        if self._dead(_HERE):
            return "the controller dies; recover leaves the guest at one place, whole"
        if self._evidence.mode is Mode.SAVE:
            codes = ", ".join(map(str, sorted(self._allowed)))
        return f"exit code {codes or 'of none'}; the guest at one place, whole; nothing left behind"

    def problems(self) -> Iterator[str]:
        yield from self._in_time()
        yield from self._exit_codes()
        yield from self._one_place()
        yield from self._nothing_left()
        yield from self._completions()
        if self._evidence.mode is Mode.SAVE:
            yield from self._saved()
        else:
            yield from self._migrated()
        yield from self._words()

    # -- what is allowed ------------------------------------------------------------------------

    def _effect(self, fired: Sequence[_Fired]) -> Effect:
        """Of several: those behind the first that fails may have struck a corpse, so it counts."""
        effects = {one.what.effect for one in fired}
        for effect in (Effect.FAILS, Effect.EITHER):
            if effect in effects:
                return effect
        return Effect.NONE

    def _dead(self, side: Side) -> bool:
        """A fault has ended the controller at a side."""
        return any(one.what.controller_dies and one.side is side for one in self._fired)

    def _exits(self) -> set[int]:
        """The exit codes of the command at the source that may be."""
        if self._evidence.mode is Mode.SAVE:
            return self._ways(self._effect([o for o in self._fired if o.side is _HERE]), {1})
        effect = self._effect(self._fired)
        stages = self._stages
        if stages.transition_heard:
            failures = {3}
        elif stages.transition_begun:
            failures = {1, 3}
        else:
            failures = {1}
        if stages.go_said and not stages.transition_begun:
            late = self._effect([one for one in self._fired if one.after_go])
            if late is not Effect.NONE:
                failures |= {4}
                effect = Effect.EITHER
        elif stages.transition_heard and self._dead(_THERE):
            effect = Effect.EITHER
        allowed = self._ways(effect, failures)
        if self._corrupts:
            allowed |= {0, 5, *failures}
        if self._guest_dies:
            allowed = {5}
        return allowed

    @staticmethod
    def _ways(effect: Effect, failures: set[int]) -> set[int]:
        if effect is Effect.NONE:
            return {0}
        return failures if effect is Effect.FAILS else {0, *failures}

    # -- the laws -------------------------------------------------------------------------------

    def _commands(self) -> Iterator[Ended]:
        yield self._evidence.command
        if self._evidence.restore is not None:
            yield self._evidence.restore

    def _in_time(self) -> Iterator[str]:
        for one in self._commands():
            if one.late:
                yield f"{one.command} did not end within {self._evidence.limit:g} s"
        for one in (*self._evidence.recoveries, *self._evidence.persons):
            if one.late:
                yield f"{one.command} did not end"

    def _exit_codes(self) -> Iterator[str]:
        command, restore = self._evidence.command, self._evidence.restore
        if not self._dead(_HERE) and not command.late and command.code not in self._allowed:
            yield f"{command.command} exited with {command.code}; right is {_or(self._allowed)}"
        if restore is not None and not self._dead(_THERE) and not restore.late:
            there = self._effect([one for one in self._fired if one.side is _THERE])
            right = self._ways(Effect.EITHER if self._corrupts else there, {1})
            if restore.code not in right:
                yield f"restore exited with {restore.code}; right is {_or(right)}"

    def _one_place(self) -> Iterator[str]:
        evidence = self._evidence
        scenes = {"in the end": evidence.recovered, "after a person has chosen": evidence.last}
        if evidence.after_save is not None:
            scenes = {"after the save": evidence.after_save, **scenes}
        for when, scene in scenes.items():
            running = scene.running()
            if len(running) > 1:
                yield f"{when} two guests run: {_places(scene)}"
            for guest in running:
                if not self._corrupts and (guest.memory_ok is not True or guest.crash):
                    yield f"{when} the memory of {guest} is wrong: {guest.crash or 'unverified'}"
            for guest in scene.guests():
                if guest.log_dirty:
                    yield f"{when} {guest} is in log-dirty mode"
                if guest.state == "crashed" and not (self._guest_dies or self._corrupts):
                    yield f"{when} {guest}: {guest.crash}"
                if guest.name.endswith("--incoming"):
                    yield f"{when} a partial copy is left: {guest}"
        yield from self._both_ran()
        if not evidence.last.running() and not (self._guest_dies or self._corrupts):
            yield from self._lost()

    def _both_ran(self) -> Iterator[str]:
        """A guest that has run at the destination is another one than that at the source."""
        here = self._evidence.recovered.places[_HERE].guest(NAME)
        if here is not None and here.runs and self._stages.ran_there:
            yield "the guest was resumed at the source after it had run at the destination"

    def _lost(self) -> Iterator[str]:
        evidence = self._evidence
        in_file = evidence.last.saved and evidence.restored_again is not None
        if in_file:
            return
        yield f"the guest is lost: {_places(evidence.last)}"

    def _nothing_left(self) -> Iterator[str]:
        evidence = self._evidence
        for when, scene in (("its end", evidence.first), ("recover", evidence.recovered)):
            for process in scene.processes:
                yield f"a process was left after {when}: {process}"
        died = any(one.what.controller_dies for one in self._fired)
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
        yield from self._descriptors()

    def _descriptors(self) -> Iterator[str]:
        """Of a guest that runs on at the source: nothing of a helper's is still connected to it."""
        guest = self._evidence.last.places[_HERE].guest(NAME)
        if guest is None:
            return
        before, after = (
            sorted(_kind_of(what) for what in table.values())
            for table in (self._evidence.descriptors_before, guest.descriptors)
        )
        if len(after) > len(before):
            extra = list(after)
            for kind in before:
                if kind in extra:
                    extra.remove(kind)
            yield f"the guest's process was left with descriptors: {', '.join(extra)}"

    def _completions(self) -> Iterator[str]:
        """Each helper that was started has ended, and was told of once."""
        evidence = self._evidence
        for side in Side:
            if self._dead(side):
                continue
            for pid in evidence.controllers(side):
                mine = [event for event in evidence.events if event["pid"] == pid]
                started = _count(mine, "helper started")
                for name in ("helper ended", "helper_ended"):
                    if (ended := _count(mine, name)) != started and not self._killed(side):
                        yield f"{started} helpers started at the {side.value}, {ended} «{name}»"
                for name in ("save_ended", "restore_ended", "migrated", "received"):
                    if _count(mine, name) > 1:
                        yield f"«{name}» {_count(mine, name)} times at the {side.value}"
                for name in ("save", "domain_created"):
                    what = {"save": "save_ended", "domain_created": "restore_ended"}[name]
                    if _count(mine, name) != _count(mine, what) and not self._killed(side):
                        yield f"«{name}» without «{what}» at the {side.value}"
            for event in evidence.named("helper started", side):
                told = [
                    one
                    for one in evidence.events
                    if one["pid"] == event["helper"] and one["event"] == "complete"
                ]
                if len(told) > 1:
                    yield f"helper {event['helper']} completed {len(told)} times"
        for one in self._commands():
            if one.out and _document(one) is None:
                yield f"{one.command} printed other than one JSON document: {one.out[:80]!r}"

    def _killed(self, side: Side) -> bool:
        """The controller at a side may have been ended from outside: by its peer, or by us."""
        late = any(one.late for one in self._commands())
        return late or (side is _THERE and self._dead(_HERE))

    # -- a migration ----------------------------------------------------------------------------

    def _migrated(self) -> Iterator[str]:
        if self._dead(_HERE):
            yield from self._after_death()
            return
        command = self._evidence.command
        law = _LAWS.get(command.code)
        if law is not None:
            here, there = (self._evidence.recovered.places[side] for side in (_HERE, _THERE))
            for what, holds in law(self, here.guest, there.guest):
                if not holds:
                    where = _places(self._evidence.recovered)
                    yield f"exit code {command.code}, but {what}: {where}"
        yield from self._told()

    def _after_death(self) -> Iterator[str]:
        """The controller died: `recover` has it rightly."""
        scene = self._evidence.recovered
        here = scene.places[_HERE]
        stages = self._stages
        bound = stages.go_said or stages.transition_begun
        if not bound and not (here.guest(NAME) and scene.running()):
            yield f"nothing was promised, but the guest does not run: {_places(scene)}"
        if bound and not scene.running():
            waits = [g for g in here.guests if g.name in {_AWAY, _INCONSISTENT}]
            if not (waits and here.journals):
                yield f"the guest runs nowhere, and nothing says why: {_places(scene)}"

    def _told(self) -> Iterator[str]:
        """What the command says of itself is what was seen."""
        command = self._evidence.command
        said = _document(command)
        if said is None or "outcome" not in said:
            if command.code in {0, 3, 4, 5} or (command.code == 1 and "error" not in (said or {})):
                yield f"{command.command} printed no result"
            return
        if said["outcome"] != _OUTCOMES.get(command.code):
            yield f"it says {said['outcome']}, but exits with {command.code}"
        if (said["rc"] == 0) != (command.code == 0):
            yield f"it says rc {said['rc']}, but exits with {command.code}"
        yield from self._rc(said["rc"])
        transitioned = said["postcopy_transitioned"]
        if transitioned not in self._stages.transitioned(command.code):
            yield f"it says that the postcopy transition was {transitioned}"
        if command.code and not said["reason"]:
            yield "it says no reason"

    def _rc(self, rc: int) -> Iterator[str]:
        """The first failure's code, where one fault alone has struck."""
        if not rc or len(self._fired) != 1 or not (right := self._fired[0].what.rcs):
            return
        if self._stages.told_failure and not self._stages.guest_asked:
            # libxl's rule for a helper that fails before the guest has answered anything.
            right |= {GUEST_TIMEDOUT}
        if rc not in right:
            yield f"rc {rc}; right is {_or(right)}"

    # -- a save ---------------------------------------------------------------------------------

    def _saved(self) -> Iterator[str]:
        evidence = self._evidence
        after = evidence.after_save
        assert after is not None, "each save has a scene after it"
        here = after.places[_HERE].guest(NAME)
        if self._dead(_HERE):
            if not after.saved and not (here and here.runs):
                yield f"neither the guest nor its file is there: {_places(after)}"
            return
        if evidence.command.code == 0:
            if not after.saved:
                yield "the save succeeded, but there is no file"
            if here is not None:
                yield f"the save succeeded, but {here} is still there"
        else:
            if after.saved:
                yield "the save failed, but there is a file"
            if not (here and here.runs) and not self._guest_dies:
                yield f"the save failed, and the guest does not run: {_places(after)}"
        if evidence.restore is None or self._dead(_THERE):
            return
        there = evidence.recovered.places[_THERE].guest(NAME)
        if evidence.restore.code == 0 and not (there and (there.runs or self._corrupts)):
            where = _places(evidence.recovered)
            yield f"the restore succeeded, but the guest does not run: {where}"
        if evidence.restore.code and there is not None:
            yield f"the restore failed, but {there} is there"

    # -- what is said ---------------------------------------------------------------------------

    def _words(self) -> Iterator[str]:
        for one in (*self._commands(), *self._evidence.recoveries, *self._evidence.persons):
            if "Traceback" in one.err:
                yield f"{one.command} ended in a traceback: {one.err.strip().splitlines()[-1]}"
        for one, side in zip(self._commands(), (_HERE, _THERE), strict=False):
            if one.code <= 0 or self._dead(side) or one.late:
                continue
            lines = [line for line in one.err.splitlines() if line.startswith("xen-toolstack: ")]
            if not lines:
                yield f"{one.command} failed, and said nothing"
                continue
            causes = [f.what.words for f in self._fired if f.what.effect is not Effect.NONE]
            if causes and not any(re.search(words, "\n".join(lines), re.I) for words in causes):
                yield f"the error does not name the cause (want {' or '.join(causes)}): {lines[-1]}"


class _Stages:
    """How far a migration came, by the trace: the words of both sides, so that no side can hide
    what the other has heard."""

    def __init__(self, evidence: Evidence) -> None:
        self._postcopy = evidence.mode is Mode.POSTCOPY
        here, there = evidence.of(_HERE), evidence.of(_THERE)
        self.transition_begun = self.transition_heard = self.go_said = self.ran_there = False
        self.told_failure = self.guest_asked = False
        for event in evidence.events:
            at, what = event["pid"], event["event"]
            if at in here:
                if what == "complete" and event["retval"]:
                    self.told_failure = True
                if what == "suspend_request":
                    self.guest_asked = True
                if what == "postcopy_transition":
                    self.transition_begun = True
                if _is_go(event):
                    self.go_said = True
            if at in there:
                if what == "stream_read" and event.get("record") == "POSTCOPY_TRANSITION_END":
                    self.transition_begun = self.transition_heard = True
                if what == "postcopy_resume_done" and event["rc"] == 0:
                    self.ran_there = True
                if what == "handshake" and event["action"] == "report the start":
                    self.ran_there = True

    def transitioned(self, code: int) -> set[str]:
        """The values of `postcopy_transitioned` that are right for an exit code."""
        if not self._postcopy or not self.transition_begun:
            return {"never"}
        if code in {0, 3}:
            return {"done"}
        return {"never", "failed"}


Find = Callable[[str], Guest | None]


def _success(oracle: _Oracle, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    guest = there(NAME)
    yield "the guest is still at the source", not oracle._evidence.recovered.places[_HERE].guests
    yield (
        "the guest does not run at the destination",
        guest is not None and (guest.runs or oracle._corrupts),
    )


def _at_source(oracle: _Oracle, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(NAME)
    yield "a guest is at the destination", not oracle._evidence.recovered.places[_THERE].guests
    yield "the guest does not run at the source", guest is not None and guest.runs


def _inconsistent(_oracle: _Oracle, here: Find, _there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(_INCONSISTENT)
    yield f"no {_INCONSISTENT} is suspended", guest is not None and guest.state == "suspended"


def _undefined(_oracle: _Oracle, here: Find, _there: Find) -> Iterator[tuple[str, bool]]:
    guest = here(_AWAY)
    yield f"no {_AWAY} is suspended", guest is not None and guest.state == "suspended"


def _guest_died(oracle: _Oracle, here: Find, there: Find) -> Iterator[tuple[str, bool]]:
    yield "a guest runs", not oracle._evidence.recovered.running()


_LAWS: Final[Mapping[int, Callable[[_Oracle, Find, Find], Iterator[tuple[str, bool]]]]] = {
    0: _success,
    1: _at_source,
    3: _inconsistent,
    4: _undefined,
    5: _guest_died,
}
"""Where the guest is, by the exit code of a migration."""


def _is_go(event: Mapping[str, Any]) -> bool:
    """The source is about to say GO."""
    return (event["event"], event.get("action")) == ("handshake", _SAYS_GO)


def _count(events: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(event["event"] == name for event in events)


def _document(ended: Ended) -> dict[str, Any] | None:
    try:
        found = json.loads(ended.out)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _or(codes: set[int] | frozenset[int]) -> str:
    return " or ".join(map(str, sorted(codes))) or "none"


def _kind_of(target: str) -> str:
    return re.sub(r"\[\d+\]|/domains/.*", "", target)


def _places(scene: Scene) -> str:
    return "; ".join(f"{place} at the {side.value}" for side, place in scene.places.items())
