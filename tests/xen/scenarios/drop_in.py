"""Our helper in the place of libxl's, under an unmodified `xl`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.lab import (
    COMMAND_SECONDS,
    ENGINES,
    LIBXL,
    OURS,
    OURS_LIBXENGUEST,
    OURS_OWN,
    Helper,
)
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

ENVIRONMENT: Final = Path("/etc/environment")


def each_engine(lab: Lab, kind: str, helpers: Sequence[Helper]) -> None:
    """Each helper in turn saves and restores a guest, and migrates it live with itself at both
    ends; Xen's own verifier accepts what was saved."""
    guest = lab.guest(kind)
    for helper in helpers:
        _save_and_restore(lab, guest, helper, helper)
        lab.migrate(guest, helper, helper)


def beside_libxls(lab: Lab, guest: Guest, helper: Helper) -> None:
    """What `helper` saves or sends, libxl's restores or receives, and the other way round."""
    _save_and_restore(lab, guest, helper, LIBXL)
    _save_and_restore(lab, guest, LIBXL, helper)
    if guest.kind != "pv":
        lab.migrate(guest, helper, LIBXL)
        lab.migrate(guest, LIBXL, helper)


def all_of_an_hvm_guest(lab: Lab) -> None:
    """One that takes a minute to boot: our own engine beside libxl's helper, and libxenguest under
    ours."""
    guest = lab.guest("hvm")
    beside_libxls(lab, guest, OURS_OWN)
    _save_and_restore(lab, guest, OURS_LIBXENGUEST, OURS_LIBXENGUEST)


def migrate(lab: Lab, kind: str) -> None:
    """Live, with our helper at both ends."""
    lab.migrate(lab.guest(kind))


def _save_and_restore(lab: Lab, guest: Guest, saving: Helper, restoring: Helper) -> None:
    file = lab.directory / "saved"
    lab.save(guest, file, saving)
    if saving != LIBXL:
        lab.verify_stream(file)
    lab.restore(guest, file, restoring)


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
    lines = f"LIBXL_SAVE_HELPER={OURS.program}\nXEN_SAVE_HELPER_EVENTS={events}\n"
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
    Scenario("xl-each-engine-pvh", partial(each_engine, kind="pvh", helpers=ENGINES), BOTH),
    Scenario("xl-beside-libxls-pvh", lambda lab: beside_libxls(lab, lab.guest("pvh"), OURS_OWN)),
    Scenario("xl-beside-libxls-pv", lambda lab: beside_libxls(lab, lab.guest("pv"), OURS)),
    Scenario("xl-all-of-hvm", all_of_an_hvm_guest, limit=900),
    Scenario("xl-log-line-pvh", log_line),
    Scenario("xl-receiver-by-etc-environment-pvh", receiver_by_etc_environment),
    Scenario("xl-migrate-pv", partial(migrate, kind="pv"), shadow=True),
)
