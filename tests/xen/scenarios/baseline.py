"""libxl's own helper: a failure here is the rig's fault, not ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.guest import KEPT
from tests.xen.dom0.lab import LIBXL
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab


def baseline(lab: Lab) -> None:
    """Save, restore and live migration of a PVH guest with libxl's helper."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    lab.save(guest, file, LIBXL)
    lab.restore(guest, file, LIBXL)
    lab.migrate(guest, LIBXL, LIBXL)


def damage_is_noticed(lab: Lab) -> None:
    """If a few bytes of a saved guest's memory are changed, the restored guest says so."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    lab.save(guest, file, LIBXL)
    stream = file.read_bytes()
    assert KEPT in stream
    file.write_bytes(stream.replace(KEPT, KEPT.upper()))
    lab.xl(["restore", file], LIBXL)
    wait_until("the guest notices", lambda: "memory damaged: /data/kept" in guest.console, 60)


SCENARIOS: Final = (
    Scenario("baseline", baseline, NONE, BOOKWORM),
    Scenario("baseline-damage-is-noticed", damage_is_noticed),
)
