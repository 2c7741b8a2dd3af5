"""All scenarios, in the order in which they run.

A scenario is a function that takes a `tests.xen.dom0.lab.Lab`, runs inside dom0, and raises where
something is not as it must be. To add one: write the function in a module here, put it into that
module's SCENARIOS, and a new module's SCENARIOS into the tuple below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.xen.scenarios import (
    baseline,
    drop_in,
    event_channel,
    failures,
    faults,
    libvirt,
    measure,
    policy,
    second_incoming,
    toolstack,
)
from tests.xen.scenarios.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (
    *baseline.SCENARIOS,
    *drop_in.SCENARIOS,
    *libvirt.SCENARIOS,
    *policy.SCENARIOS,
    *failures.SCENARIOS,
    *second_incoming.SCENARIOS,
    *faults.SCENARIOS,
    *toolstack.SCENARIOS,
    *event_channel.SCENARIOS,
    *measure.SCENARIOS,
)


SetupKey = tuple[str, bool, bool]
"""What a machine depends on: the suite, `shadow`, `hvm`."""


@dataclass(frozen=True)
class Case:
    """A scenario on one suite."""

    suite: str
    scenario: Scenario

    @property
    def setup(self) -> SetupKey:
        """What the machine that it runs on depends on."""
        return self.suite, self.scenario.shadow, self.scenario.hvm


def cases(suites: Sequence[str]) -> list[Case]:
    """All, so sorted that those which can share a machine follow each other."""
    found = [
        Case(suite, scenario)
        for suite in suites
        for scenario in SCENARIOS
        if suite in scenario.suites
    ]
    return sorted(found, key=lambda case: (suites.index(case.suite), *case.setup[1:]))
