"""Our helper in the place of libxl's, under an unmodified `xl`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.lab import LIBXL, OURS
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from pathlib import Path

    from tests.xen.dom0.lab import Lab


def save_and_restore(lab: Lab, kind: str) -> None:
    """Ours in both; Xen's own verifier accepts what was saved."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    lab.save(guest, file)
    lab.verify_stream(file)
    lab.restore(guest, file)


def mixed(lab: Lab, kind: str) -> None:
    """One helper saves, the other one restores, both ways round."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    lab.save(guest, file, OURS)
    lab.restore(guest, file, LIBXL)
    lab.save(guest, file, LIBXL)
    lab.restore(guest, file, OURS)


def migrate(lab: Lab, kind: str, sender: Path, receiver: Path) -> None:
    """Live, with these helpers."""
    lab.migrate(lab.guest(kind), sender, receiver)


SCENARIOS: Final = (
    Scenario("xl-save-verify-restore-pvh", partial(save_and_restore, kind="pvh"), BOTH),
    Scenario("xl-migrate-pvh", partial(migrate, kind="pvh", sender=OURS, receiver=OURS), BOTH),
    Scenario("xl-save-verify-restore-pv", partial(save_and_restore, kind="pv"), BOTH),
    Scenario("xl-mixed-helpers-pvh", partial(mixed, kind="pvh")),
    Scenario("xl-mixed-helpers-pv", partial(mixed, kind="pv")),
    Scenario("xl-migrate-sender-pvh", partial(migrate, kind="pvh", sender=OURS, receiver=LIBXL)),
    Scenario("xl-migrate-receiver-pvh", partial(migrate, kind="pvh", sender=LIBXL, receiver=OURS)),
    Scenario(
        "xl-save-verify-restore-hvm", partial(save_and_restore, kind="hvm"), hvm=True, limit=600
    ),
    Scenario(
        "xl-migrate-hvm",
        partial(migrate, kind="hvm", sender=OURS, receiver=OURS),
        hvm=True,
        limit=600,
    ),
    Scenario("xl-migrate-pv", partial(migrate, kind="pv", sender=OURS, receiver=OURS), shadow=True),
)
