"""libxl's own helper: what fails here is the rig's fault, not ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.xen.dom0.lab import LIBXL
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab


def baseline(lab: Lab) -> None:
    """Save, restore and live migration of a PVH guest with libxl's helper."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    lab.save(guest, file, LIBXL)
    lab.restore(guest, file, LIBXL)
    lab.migrate(guest, LIBXL, LIBXL)


SCENARIOS: Final = (Scenario("baseline", baseline, suites=BOTH),)
