"""Our helper in place of libxl's, under an unmodified `xl`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.lab import COMMAND_SECONDS, ENGINES, LIBXL, OURS, Helper
from tests.xen.scenarios.scenario import BOOKWORM, BOTH, NONE, TRIXIE, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

    Work = Callable[[Lab, Guest, Sequence[Helper]], None]

ENVIRONMENT: Final = Path("/etc/environment")


def save_and_restore(lab: Lab, guest: Guest, helpers: Sequence[Helper]) -> None:
    """The same helper saves and restores; Xen's own verifier accepts what was saved."""
    file = lab.directory / "saved"
    for helper in helpers:
        lab.save(guest, file, helper)
        lab.verify_stream(file)
        lab.restore(guest, file, helper)


def mixed(lab: Lab, guest: Guest, helpers: Sequence[Helper]) -> None:
    """One of `helpers` saves and libxl's restores, then the other way round."""
    file = lab.directory / "saved"
    for helper in helpers:
        lab.save(guest, file, helper)
        lab.restore(guest, file, LIBXL)
        lab.save(guest, file, LIBXL)
        lab.restore(guest, file, helper)


def migrate(lab: Lab, guest: Guest, helpers: Sequence[Helper]) -> None:
    """A live migration with the same helper at both ends."""
    for helper in helpers:
        lab.migrate(guest, helper, helper)


def sender_then_receiver(lab: Lab, guest: Guest, helpers: Sequence[Helper]) -> None:
    """Live migrations of one guest, with each of `helpers` first at one end, then at the other."""
    for helper in helpers:
        lab.migrate(guest, helper, LIBXL)
        lab.migrate(guest, LIBXL, helper)


def all_of_one_guest(lab: Lab, kind: str) -> None:
    """A save, a restore and a live migration with our helper, of a guest that takes a minute to
    boot."""
    guest = lab.guest(kind)
    save_and_restore(lab, guest, [OURS])
    migrate(lab, guest, [OURS])


def on_a_share(lab: Lab) -> None:
    """On 9p, whose driver hands memory itself to its transport, and cannot reach mapped pages of a
    domain. What libxl's helper makes of it is a figure."""
    guest = lab.guest("pvh")
    file = lab.results / "saved"
    with open("/proc/mounts", encoding="utf-8") as mounts:
        kinds = {line.split()[1]: line.split()[2] for line in mounts}
    assert any(kinds.get(str(parent)) == "9p" for parent in file.parents), kinds
    try:
        theirs = lab.xl(["save", "-c", guest.name, file], LIBXL, limit=COMMAND_SECONDS)
        lab.figure("libxl's save", theirs.status)
        lab.save(guest, file)
        lab.verify_stream(file)
        lab.restore(guest, file)
    finally:
        file.unlink(missing_ok=True)


def log_line(lab: Lab) -> None:
    """With -vvv, the log of xl says which helper it has started, as helper/README.md describes."""
    guest = lab.guest("pvh")
    done = lab.xl(["-vvv", "save", guest.name, lab.directory / "saved"], limit=COMMAND_SECONDS)
    assert done.status == 0
    assert "xen-save-helper: debug: starting save" in done.output


def receiver_by_etc_environment(lab: Lab) -> None:
    """A receiver that PAM has started takes our helper because of a line in /etc/environment, and
    libxl's without it. Here `su -` calls pam_env, as sshd does on a destination host."""
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


def _of_a_new(kind: str, work: Work, lab: Lab) -> None:
    """Do `work` with a guest, and with both engines if our own works on guests of its kind."""
    work(lab, lab.guest(kind), [OURS] if kind == "pv" else ENGINES)


def _with_ours(kind: str, work: Work, lab: Lab) -> None:
    """Do `work` with a guest, and with our helper's default engine."""
    work(lab, lab.guest(kind), [OURS])


SCENARIOS: Final = (
    Scenario("xl-save-verify-restore-pvh", partial(_of_a_new, "pvh", save_and_restore), BOTH),
    Scenario("xl-migrate-pvh", partial(_of_a_new, "pvh", migrate), BOOKWORM, TRIXIE),
    Scenario("xl-save-verify-restore-pv", partial(_of_a_new, "pv", save_and_restore)),
    Scenario("xl-mixed-helpers-pvh", partial(_with_ours, "pvh", mixed)),
    Scenario("xl-mixed-helpers-pv", partial(_of_a_new, "pv", mixed), NONE, BOOKWORM),
    Scenario(
        "xl-migrate-sender-then-receiver-pvh",
        partial(_of_a_new, "pvh", sender_then_receiver),
        NONE,
        BOTH,
    ),
    Scenario(
        "xl-migrate-sender-then-receiver-hvm",
        partial(_with_ours, "hvm", sender_then_receiver),
        NONE,
        BOOKWORM,
    ),
    Scenario("xl-log-line-pvh", log_line),
    Scenario("xl-save-restore-on-9p-pvh", on_a_share),
    Scenario("xl-receiver-by-etc-environment-pvh", receiver_by_etc_environment),
    Scenario(
        "xl-save-verify-restore-migrate-hvm",
        partial(all_of_one_guest, kind="hvm"),
        limit=900,
    ),
    Scenario("xl-migrate-pv", partial(_of_a_new, "pv", migrate), shadow=True),
)
