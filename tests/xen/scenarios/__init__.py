"""All scenarios, in the order in which they run.

A scenario is a function that takes a `tests.xen.dom0.lab.Lab`, runs inside dom0, and raises an
exception if something is not as it must be. To add one: write the function in a module here, put it
into that module's SCENARIOS, and a new module's SCENARIOS into the tuple below. A scenario that
needs files of another one, perhaps from another release of Xen, names that one in `after`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from tests.xen.scenarios import (
    baseline,
    cpu_policy,
    cross_release,
    device_model,
    drop_in,
    evacuation,
    event_channel,
    failures,
    faults,
    libvirt,
    libvirt_postcopy,
    measure,
    policy,
    postcopy,
    postcopy_in_a_row,
    second_incoming,
    sparse,
    toolstack,
)
from tests.xen.scenarios.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *baseline.SCENARIOS,
    *drop_in.SCENARIOS,
    *cpu_policy.SCENARIOS,
    *libvirt.SCENARIOS,
    *libvirt_postcopy.SCENARIOS,
    *policy.SCENARIOS,
    *failures.SCENARIOS,
    *second_incoming.SCENARIOS,
    *faults.SCENARIOS,
    *toolstack.SCENARIOS,
    *sparse.SCENARIOS,
    *evacuation.SCENARIOS,
    *event_channel.SCENARIOS,
    *postcopy.SCENARIOS,
    *postcopy_in_a_row.SCENARIOS,
    *measure.SCENARIOS,
    *cross_release.SCENARIOS,
    *device_model.SCENARIOS,
)

BY_NAME: Final = {scenario.name: scenario for scenario in SCENARIOS}


SetupKey = tuple[str, bool]
"""What a machine depends on: the suite, `shadow`."""


@dataclass(frozen=True)
class Case:
    """A scenario on one suite."""

    suite: str
    scenario: Scenario

    @property
    def setup(self) -> SetupKey:
        """What the machine that it runs on depends on."""
        return self.suite, self.scenario.shadow

    @property
    def before(self) -> Case | None:
        """The one whose files it needs."""
        if not self.scenario.after:
            return None
        scenario = BY_NAME[self.scenario.after]
        return Case((*scenario.suites, *scenario.seldom)[0], scenario)

    @property
    def generation(self) -> int:
        """How many cases have to come before it, one after the other."""
        return 0 if self.before is None else self.before.generation + 1


def with_those_before(wanted: Sequence[Case]) -> list[Case]:
    """`wanted` and what these depend on, without duplicates; no case comes before what it depends
    on."""
    found: dict[Case, None] = {}
    for case in wanted:
        chain = [case]
        while (before := chain[-1].before) is not None:
            chain.append(before)
        found.update(dict.fromkeys(reversed(chain)))
    return list(found)


def cases(suites: Sequence[str], names: Collection[str] = (), *, seldom: bool) -> list[Case]:
    """The scenarios with these names, or all; those that are seldom run only if `seldom`. They are
    sorted so that those which can share a machine follow each other, and none comes before what it
    depends on."""
    found = [
        Case(suite, scenario)
        for suite in suites
        for scenario in SCENARIOS
        if suite in (*scenario.suites, *(scenario.seldom if seldom else ()))
        and (not names or scenario.name in names)
    ]
    return sorted(
        found, key=lambda case: (case.generation, suites.index(case.suite), *case.setup[1:])
    )
