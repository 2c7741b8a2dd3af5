"""Our helper in the place of libxl's, under an unmodified `xl`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.lab import COMMAND_SECONDS, LIBXL, OURS
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab


ENVIRONMENT: Final = Path("/etc/environment")


def save_and_restore(lab: Lab, guest: Guest) -> None:
    """Ours in both; Xen's own verifier accepts what was saved."""
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


def migrate(lab: Lab, kind: str) -> None:
    """Live, with ours at both ends."""
    lab.migrate(lab.guest(kind), OURS, OURS)


def sender_then_receiver(lab: Lab) -> None:
    """Live migrations of one guest: ours at the one end, then at the other."""
    guest = lab.guest("pvh")
    lab.migrate(guest, OURS, LIBXL)
    lab.migrate(guest, LIBXL, OURS)


def all_of_one_guest(lab: Lab, kind: str) -> None:
    """Save, restore and live migration with ours, of a guest that takes a minute to boot."""
    guest = lab.guest(kind)
    save_and_restore(lab, guest)
    lab.migrate(guest, OURS, OURS)


def log_line(lab: Lab) -> None:
    """With -vvv, what xl logs says which helper it has started, as helper/README.md has it."""
    guest = lab.guest("pvh")
    done = lab.xl(["-vvv", "save", guest.name, lab.directory / "saved"], limit=COMMAND_SECONDS)
    assert done.status == 0
    assert "xen-save-helper: debug: starting save" in done.output


def receiver_by_etc_environment(lab: Lab) -> None:
    """A receiver that PAM has started takes our helper by a line of /etc/environment, and libxl's
    without it. Here `su -` calls pam_env, as sshd does on a host that one migrates to."""
    guest = lab.guest("pvh")
    events = lab.directory / "receivers-events"
    lines = f"LIBXL_SAVE_HELPER={OURS}\nXEN_SAVE_HELPER_EVENTS={events}\n"
    before = ENVIRONMENT.read_text() if ENVIRONMENT.exists() else ""
    try:
        for line in ("", lines):
            assert not events.exists()
            ENVIRONMENT.write_text(before + line)
            xl = lab.start_migrate(guest, LIBXL, "exec su - root -c 'xl migrate-receive'")
            assert xl.end(COMMAND_SECONDS).status == 0
            lab.assert_only(guest)
            guest.goes_on()
    finally:
        ENVIRONMENT.write_text(before)
    traced = [json.loads(line) for line in events.read_text().splitlines()]
    assert [event["retval"] for event in traced if event["event"] == "complete"] == [0]


SCENARIOS: Final = (
    Scenario(
        "xl-save-verify-restore-pvh", lambda lab: save_and_restore(lab, lab.guest("pvh")), BOTH
    ),
    Scenario("xl-migrate-pvh", partial(migrate, kind="pvh"), BOTH),
    Scenario("xl-save-verify-restore-pv", lambda lab: save_and_restore(lab, lab.guest("pv"))),
    Scenario("xl-mixed-helpers-pvh", partial(mixed, kind="pvh")),
    Scenario("xl-mixed-helpers-pv", partial(mixed, kind="pv")),
    Scenario("xl-migrate-sender-then-receiver-pvh", sender_then_receiver),
    Scenario("xl-log-line-pvh", log_line),
    Scenario("xl-receiver-by-etc-environment-pvh", receiver_by_etc_environment),
    Scenario(
        "xl-save-verify-restore-migrate-hvm",
        partial(all_of_one_guest, kind="hvm"),
        hvm=True,
        limit=900,
    ),
    Scenario("xl-migrate-pv", partial(migrate, kind="pv"), shadow=True),
)
