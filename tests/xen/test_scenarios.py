"""Every scenario as a test, with a time limit of its own."""

from __future__ import annotations

import pytest

from tests.xen.images import ORDINARY
from tests.xen.machine import AFTER_LIMIT_SECONDS, START_SECONDS
from tests.xen.runner import RETRIES, Machines, explained
from tests.xen.scenarios import Case, cases

MAKING_SECONDS = 2400
"""Seconds to make an image and a hypervisor if there are none yet."""


def _parameter(case: Case) -> object:
    once = START_SECONDS + case.scenario.limit + AFTER_LIMIT_SECONDS
    limit = MAKING_SECONDS + once * (RETRIES + 1)
    name = f"{case.suite}-{case.scenario.name}"
    return pytest.param(case, id=name, marks=pytest.mark.timeout(limit))


@pytest.mark.real_xen
@pytest.mark.parametrize("case", [_parameter(case) for case in cases(list(ORDINARY), seldom=True)])
def test_scenario(machines: Machines, case: Case) -> None:
    outcome = machines.run(case)
    assert outcome.outcome == "passed", explained(outcome)
