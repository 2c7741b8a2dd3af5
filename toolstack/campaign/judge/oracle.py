"""The oracle: what must be true at the end of a run, given the faults that struck.

It looks at the evidence alone: exit codes, the process table, the guests, the files, and the trace.
What a controller says of itself in its JSON is only compared with that. The rules are those of
toolstack/rules/teardown.md, one guest in one place above all; no table of the controller is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from xen_save_helper.ipc_schema.faults.plan import Plan
from xen_save_helper.toolstack.campaign.evidence import Evidence, Mode
from xen_save_helper.toolstack.campaign.judge.case import HERE, Case, find_fired
from xen_save_helper.toolstack.campaign.judge.cause_laws import caused
from xen_save_helper.toolstack.campaign.judge.laws import general, listed, words
from xen_save_helper.toolstack.campaign.judge.link_laws import linked
from xen_save_helper.toolstack.campaign.judge.outcome_laws import OUTCOMES, migrated, saved
from xen_save_helper.toolstack.campaign.judge.trace_laws import traced
from xen_save_helper.toolstack.limits import Limits


@dataclass(frozen=True)
class Judgement:
    """See `run.Verdict`."""

    fired: tuple[str, ...]
    problems: tuple[str, ...]
    expected: str
    seen: Mapping[str, object]


def judge(plan: Plan, evidence: Evidence, limits: Limits) -> Judgement:
    case = Case(evidence, list(find_fired(plan, evidence, limits)), limits)
    return Judgement(
        fired=tuple(dict.fromkeys(map(str, case.fired))),
        problems=tuple(dict.fromkeys(_problems(case))),
        expected=_expected(case),
        seen=_seen(evidence),
    )


def _problems(case: Case) -> Iterator[str]:
    yield from general(case)
    yield from traced(case)
    yield from (saved if case.evidence.mode is Mode.SAVE else migrated)(case)
    yield from linked(case)
    yield from caused(case)
    yield from words(case)


def _expected(case: Case) -> str:
    codes = ", ".join(f"{code} ({OUTCOMES[code]})" for code in sorted(case.allowed))
    if case.dead(HERE):
        return "the controller dies; recover leaves the guest at one place, whole"
    if case.evidence.mode is Mode.SAVE:
        codes = listed(case.allowed)
        if case.evidence.restore is not None:
            codes += f", the restore's {listed(case.restore_allowed)}"
    return f"exit code {codes or 'none'}; the guest at one place, whole; nothing left behind"


def _seen(evidence: Evidence) -> dict[str, object]:
    seen: dict[str, object] = {"exit code": evidence.command.code}
    if evidence.restore is not None:
        seen["restore's exit code"] = evidence.restore.code
    for side, place in evidence.recovered.places.items():
        seen[f"at the {side.value}"] = str(place)
    for one in (evidence.command, evidence.restore):
        if one is not None and one.err:
            seen[f"{one.command} said"] = one.err.strip().splitlines()[-1]
    if evidence.restored_again is not None:
        seen["restored again"] = str(evidence.restored_again)
    recoveries = [one.out.strip() or one.err.strip() for one in evidence.recoveries]
    if recoveries:
        seen["recover said"] = recoveries
    if evidence.persons:
        seen["then"] = str(evidence.last.places[HERE])
    return seen
