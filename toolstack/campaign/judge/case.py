"""What is judged: the evidence of a run, the faults that struck, and which ends would be right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Final

from xen_save_helper.ipc_schema.channel.messages import PrecopyPolicy
from xen_save_helper.ipc_schema.faults.plan import Fault, Plan
from xen_save_helper.ipc_schema.faults.points import EXIT, Kind, Side, Who
from xen_save_helper.toolstack.campaign.evidence import Ended, Evidence, Mode
from xen_save_helper.toolstack.campaign.judge.effects import (
    expectation,
    of_ended_precopy,
    of_unsuspended,
)
from xen_save_helper.toolstack.campaign.judge.expectation import (
    GUEST_TIMEDOUT,
    NONE,
    OF_A_PEER,
    Effect,
    Expectation,
    Spoils,
)
from xen_save_helper.toolstack.campaign.judge.link_effects import (
    ALL_THERE,
    LOST,
    of_pager,
    of_restore,
)
from xen_save_helper.toolstack.campaign.judge.progress import Stages, is_go
from xen_save_helper.toolstack.limits import Limits

HERE: Final = Side.SOURCE
THERE: Final = Side.DESTINATION

_MARGIN: Final = 12.0
"""Seconds for everything without a limit of its own, on a busy machine."""


@dataclass(frozen=True)
class StruckFault:
    """A fault that struck, and what it must lead to. `side` is None for the link."""

    fault: Fault
    side: Side | None
    what: Expectation
    after_go: bool
    """Whether it may have struck after the source had said GO."""
    at: float
    """When it struck, on the clock of the trace."""

    def __str__(self) -> str:
        """The fault as it is typed, with the side at which it struck."""
        text = str(self.fault)
        if self.side is None or self.fault.side is not None:
            return text
        return f"{self.side.value}{'/' if self.fault.point.who is Who.HELPER else '.'}{text}"


def find_fired(plan: Plan, evidence: Evidence, limits: Limits) -> Iterator[StruckFault]:
    """Yield the faults in the order in which they struck."""
    by_text = {str(fault): fault for fault in plan.faults}
    after_go = False
    pagers: set[int] = set()
    decided = PrecopyPolicy.CONTINUE_PRECOPY.name
    for event in evidence.events:
        if event["event"] == "precopy_policy":
            decided = event["answer"]
        if event["event"] == "pager":
            pagers.add(event["pid"])
        after_go = after_go or is_go(event)
        if event["event"] == "fault":
            fault = by_text[event["fault"]]
            side = next((side for side in Side if event["pid"] in evidence.of(side)), None)
            point = fault.point
            late = after_go or point.who is Who.LINK or point.kind is Kind.HANDSHAKE
            alone = side is not THERE or evidence.mode is Mode.SAVE
            what = expectation(fault, limits, side, alone=alone)
            if point.of == "precopy_policy" and decided != PrecopyPolicy.CONTINUE_PRECOPY.name:
                what = of_ended_precopy(fault, what)
            if side is HERE and not evidence.named("suspend_request"):
                what = of_unsuspended(fault, what)
            if point.who is Who.HELPER and event["pid"] in pagers:
                # Its controller has gone, and its work is done once it is about to exit.
                what = NONE if point.name == EXIT else of_pager(fault)
            elif point.who is Who.HELPER and side is THERE and evidence.mode is Mode.LINK:
                what = of_restore(fault, what)
            yield StruckFault(fault, side, what, late, event["t"])
        elif event["event"] == "suspend_request":
            # A guest behaves in one way only: the last that it was told.
            for fault in plan.drawn(Who.GUEST)[-1:]:
                yield StruckFault(fault, HERE, expectation(fault, limits), after_go, event["t"])


def effect_of(fired: Sequence[StruckFault]) -> Effect:
    """The effect of several faults. Those after the first that fails the operation may have
    struck a dead process, so one is enough."""
    effects = {one.what.effect for one in fired}
    for effect in (Effect.FAILS, Effect.EITHER):
        if effect in effects:
            return effect
    return Effect.NONE


def _is_of_link(fired: StruckFault) -> bool:
    """Whether it has ended a page server that served, or a pager that its controller had left."""
    return fired.what in {LOST, ALL_THERE}


def _breaks_the_handshake(fired: StruckFault) -> bool:
    """Whether it certainly breaks the handshake, neither by chance nor too late."""
    return fired.fault.point.kind is Kind.HANDSHAKE and fired.what.effect is Effect.FAILS


def ways(effect: Effect, failures: set[int]) -> set[int]:
    """The exit codes that an effect allows; `failures` are those of a failure."""
    if effect is Effect.NONE:
        return {0}
    return failures if effect is Effect.FAILS else {0, *failures}


class Case:
    """A run as the laws see it."""

    def __init__(self, evidence: Evidence, fired: Sequence[StruckFault], limits: Limits) -> None:
        self.evidence = evidence
        self.limits = limits
        self.fired = fired
        self.corrupting = [one for one in fired if one.what.corrupts]
        self.guest_dies = any(one.what.guest_dies for one in fired)
        self.stages = Stages(evidence)

    def spoils(self, side: Side, *what: Spoils) -> bool:
        """Whether one of these may be wrong with the guest at a side. A stream does nothing to the
        guest that it is made from."""
        return side is THERE and any(one.what.spoils in what for one in self.fired)

    def may_crash(self, side: Side) -> bool:
        return self.spoils(side, Spoils.DEVICE_MODEL, Spoils.MEMORY)

    @property
    def pages_lost(self) -> bool:
        """Whether a process has died that had the guest's last pages in hand, too early for it to
        be whole at the destination."""
        return not self.stages.all_in and any(one.what.loses_pages for one in self.fired)

    @property
    def file_corrupted(self) -> bool:
        """Whether the save file may be damaged so that no guest can be restored from it."""
        return any(one.side is HERE for one in self.corrupting)

    @property
    def crashed_there(self) -> bool:
        """Whether a guest that was restored from a corrupted stream has crashed."""
        guests = self.evidence.recovered.places[THERE].guests
        return self.may_crash(THERE) and any(guest.state == "crashed" for guest in guests)

    @cached_property
    def restore_allowed(self) -> set[int]:
        """The exit codes that a restore may have."""
        mine = [one for one in self.fired if one.side is THERE or one.what.corrupts]
        return ways(effect_of(mine), {1})

    @property
    def commands(self) -> list[Ended]:
        """The commands under test, in the order of the sides."""
        restore = self.evidence.restore
        return [self.evidence.command, *([] if restore is None else [restore])]

    def rcs(self, side: Side) -> frozenset[int]:
        """The codes that a failed operation at a side may have: that of the first fault that must
        fail it, or of one before it; empty for any. A fault that is noticed only after a time may
        be overtaken by the next one, or by the failure of the other side."""
        told = side is HERE and self.stages.helper_reported_failure
        unanswered = told and (not self.stages.guest_asked or self._guest_silent)
        if unanswered and not self.stages.helper_failed:
            return GUEST_TIMEDOUT
        found = set(GUEST_TIMEDOUT) if unanswered else set()
        for one in self.fired:
            if one.what.effect is Effect.NONE:
                continue
            if one.side is not side:
                found |= OF_A_PEER[side]
                continue
            if not one.what.rcs:
                return frozenset()
            found |= one.what.rcs
            if one.what.waits != () and side is THERE:
                found |= OF_A_PEER[side]
            if one.what.waits == () and one.what.effect is Effect.FAILS:
                break
        return frozenset(found)

    @property
    def _guest_silent(self) -> bool:
        """Whether the guest does not answer the suspend request in time."""
        return any(
            one.what.effect is Effect.FAILS and one.what.rcs == GUEST_TIMEDOUT for one in self.fired
        )

    @property
    def patience(self) -> float:
        """Seconds that a command may take to end after the first fault that must fail it."""
        each = asdict(self.limits)
        waits = sum(
            sum(each.values()) if one.what.waits is None else sum(each[n] for n in one.what.waits)
            for one in self.fired
            if one.what.effect is not Effect.NONE
        )
        return min(waits + self._closing, self.evidence.limit)

    @property
    def _closing(self) -> float:
        """Seconds that two helpers and a receiver may take to end while the guest is watched."""
        return 5 * self.limits.abort + self.limits.suspend + _MARGIN

    def of(self, side: Side) -> list[StruckFault]:
        """The faults that the command at a side may have met; all of them in a migration."""
        if self.evidence.mode is not Mode.SAVE:
            return list(self.fired)
        return [one for one in self.fired if one.side is side and not one.what.corrupts]

    @property
    def somebody_dies(self) -> bool:
        """Whether a fault has ended a controller."""
        return any(one.what.controller_dies for one in self.fired)

    def dead(self, side: Side) -> bool:
        """Whether a fault has ended the controller at a side."""
        return any(one.what.controller_dies and one.side is side for one in self.fired)

    def killed(self, side: Side) -> bool:
        """Whether the controller at a side may have been ended by its peer, or by us."""
        if any(one.late for one in self.commands):
            return True
        ended = self.evidence.named("receiver_exited", HERE)
        by_its_peer = any(not 0 <= event["status"] <= 128 for event in ended)
        return side is THERE and (by_its_peer or self.dead(HERE))

    @cached_property
    def allowed(self) -> set[int]:
        """The exit codes that the command at the source may have."""
        if self.evidence.mode is Mode.SAVE:
            return ways(effect_of(self.of(HERE)), {1})
        # Who loses pages keeps the guest; before GO nobody else has it.
        losing = effect_of([one for one in self.fired if one.what.loses_pages])
        kept = {3} if self.stages.go_said else {1}
        if losing is Effect.FAILS and not self.stages.whole_there:
            return (self._by([one for one in self.fired if not one.what.loses_pages]) - {0}) | kept
        if losing is not Effect.NONE or self._unheard:
            return self._by([one for one in self.fired if not _is_of_link(one)]) | {0} | kept
        return self._by(self.fired)

    @property
    def _unheard(self) -> bool:
        """Whether a process has died when all pages were in place, and perhaps unheard."""
        return any(one.what == ALL_THERE for one in self.fired)

    def _by(self, fired: Sequence[StruckFault]) -> set[int]:
        """The exit codes that a migration may have by some of the faults."""
        effect = effect_of(fired)
        stages = self.stages
        if stages.transition_heard or stages.transition_written:
            failures = {3}
        elif stages.transition_begun:
            failures = {1, 3}
        else:
            failures = {1}
        if stages.go_said and not stages.transition_begun:
            late = effect_of([one for one in fired if one.after_go])
            if late is not Effect.NONE:
                failures = {1, 4} if stages.given_back else {4}
                if not all(map(_breaks_the_handshake, fired)):
                    effect = Effect.EITHER
        elif stages.whole_there or (stages.transition_heard and self.dead(THERE)):
            effect = effect if effect is Effect.NONE else Effect.EITHER
        allowed = ways(effect, failures)
        if self.crashed_there:
            allowed |= {5}
        if self.guest_dies:
            allowed = {5}
        return allowed
