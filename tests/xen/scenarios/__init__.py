"""All scenarios, in the order in which they run.

A scenario is a function that takes a `tests.xen.dom0.lab.Lab`, runs inside dom0, and raises where
something is not as it must be. To add one: write the function in a module here, put it into that
module's SCENARIOS, and a new module's SCENARIOS into the tuple below.
"""

from __future__ import annotations

from typing import Final

from tests.xen.scenarios import baseline
from tests.xen.scenarios.scenario import Scenario

SCENARIOS: Final[tuple[Scenario, ...]] = (*baseline.SCENARIOS,)
