"""`xen-toolstack` on real domains: with `xl` at the other end, with itself, and with libxl's helper
as well as ours."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import Ended, Program, run, wait_until
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.lab import COMMAND_SECONDS, LIBXL, OURS, receive_command
from tests.xen.dom0.whereabouts import log_dirty_domains
from tests.xen.scenarios.scenario import BOTH, Scenario

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

PATIENCE: Final = ("--limit=helper_start=60", "--limit=heartbeat=60", "--limit=abort=30")
"""Under emulation a Python program takes its time to start."""

RECEIVE: Final = f"exec xen-toolstack receive {' '.join(PATIENCE)}"
BANNER: Final = r"printf 'xl migration receiver ready, send binary domain data.\n'"
DYING_RECEIVER: Final = f"{BANNER}; head -c 20000000 >/dev/null; exit 3"
"""Takes part of a guest's memory and is gone."""
DYING_LATE: Final = "xl migrate-receive | head -c 60"
"""Takes all of the guest, which is suspended then, and is gone in the middle of saying ready."""

RUNNING_AT_SOURCE: Final = 1
"""The exit code of a migration after which the guest runs where it was."""

_HELD_OCTETS: Final = 16 << 20
"""In the first round: there are 96 MiB to come."""
_GIVEN_UP_SECONDS: Final = 15.0
"""From SIGINT to the end of libxc's error path, on a processor that a guest shares."""


def toolstack(*arguments: str | Path, limit: float = COMMAND_SECONDS) -> Ended:
    return run(["xen-toolstack", *arguments], limit)


def succeeds(*arguments: str | Path, limit: float = COMMAND_SECONDS) -> Ended:
    done = toolstack(*arguments, limit=limit)
    assert done.status == 0, f"xen-toolstack {arguments[0]}: {done.output}"
    return done


def save(lab: Lab, guest: Guest, file: Path, *options: str) -> None:
    succeeds("save", guest.name, file, *options, *PATIENCE)
    assert guest.name not in lab.domains()


def restore(lab: Lab, guest: Guest, file: Path, *options: str) -> None:
    succeeds("restore", file, *options, *PATIENCE)
    lab.assert_only(guest)
    guest.goes_on()


def migrate(lab: Lab, guest: Guest, to: str, *options: str) -> None:
    """It must be another domain there, and the only one, and count on."""
    before = lab.domains()[guest.name].domid
    succeeds("migrate", guest.name, "--to", to, *options, *PATIENCE)
    lab.assert_only(guest)
    assert lab.domains()[guest.name].domid != before
    guest.goes_on()


def nothing_is_left() -> None:
    """No journal, and no guest that waits for anybody."""
    directory = Path("/run/xen-save-helper")
    assert not directory.exists() or list(directory.iterdir()) == []


def save_and_restore(lab: Lab, kind: str) -> None:
    """`xen-toolstack save`, `xl restore`; `xl save`, `xen-toolstack restore`."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    save(lab, guest, file)
    lab.restore(guest, file, LIBXL)
    lab.save(guest, file, LIBXL)
    restore(lab, guest, file)
    nothing_is_left()


def migrate_both_ways(lab: Lab, kind: str) -> None:
    """`xen-toolstack migrate` to `xl migrate-receive`, and to our own receiver."""
    guest = lab.guest(kind)
    migrate(lab, guest, receive_command(LIBXL))
    migrate(lab, guest, RECEIVE)
    nothing_is_left()


def libxls_helper(lab: Lab, kind: str) -> None:
    """`xen-toolstack` drives libxl's helper through its pipes, and has `xl` use it."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    save(lab, guest, file, "--helper", "libxl")
    restore(lab, guest, file, "--helper", "libxl")
    nothing_is_left()


def receiver_dies(lab: Lab, kind: str) -> None:
    """In the middle of a live migration: the guest runs on here, and can be migrated after all,
    which it could not if its log-dirty mode were still on."""
    guest = lab.guest(kind)
    domid = lab.domains()[guest.name].domid
    for to, *helper in (
        (DYING_RECEIVER,),
        (DYING_RECEIVER, "--helper", "libxl"),
        (DYING_LATE,),
    ):
        done = toolstack("migrate", guest.name, "--to", to, *helper, *PATIENCE)
        assert done.status == RUNNING_AT_SOURCE, done.output
        lab.assert_runs_on(guest)
        assert lab.domains()[guest.name].domid == domid
    nothing_is_left()
    migrate(lab, guest, receive_command(OURS))


def guest_ignores_suspend(lab: Lab) -> None:
    """Neither a save nor a migration gets it to suspend; it runs on, and no request is left."""
    guest = lab.guest("pvh", cmdline="initcall_blacklist=xen_setup_shutdown_event")
    domid = lab.domains()[guest.name].domid
    file = lab.directory / "saved"
    patience = (*PATIENCE, "--limit=suspend=5")
    done = toolstack("save", guest.name, file, *patience)
    assert done.status == 1, done.output
    assert "ERROR_GUEST_TIMEDOUT (-8)" in done.output
    assert not file.exists()
    lab.assert_runs_on(guest)
    done = toolstack("migrate", guest.name, "--to", RECEIVE, "--json", *patience)
    assert done.status == RUNNING_AT_SOURCE, done.output
    assert '"rc": -8' in done.output
    lab.assert_runs_on(guest)
    assert lab.domains()[guest.name].domid == domid
    node = f"/local/domain/{domid}/control/shutdown"
    assert run(["xenstore-read", node]).output.strip() == ""
    nothing_is_left()


def controller_is_killed(lab: Lab) -> None:
    """`recover` ends what it left: of a save with the guest suspended, of a live migration."""
    guest = lab.guest("pvh")
    file = lab.directory / "saved"
    for moment, *command in (
        ("suspend_done", "save", guest.name, str(file)),
        ("precopy_policy", "migrate", guest.name, "--to", RECEIVE),
    ):
        kill_at(lab, moment, command)
        assert "recover" in succeeds("list").output
        succeeds("recover", guest.name)
        lab.assert_runs_on(guest)
        nothing_is_left()
    assert list(lab.directory.iterdir()) == []
    migrate(lab, guest, receive_command(LIBXL))


def interrupted(lab: Lab) -> None:
    """SIGINT in the first round, for the command alone and as a terminal sends it to all, while the
    receiver reads nothing: log-dirty mode is soon off, and the guest runs on; the command ends when
    the receiver, to which it gives its time, has ended."""
    guest = lab.guest("pvh")
    domid = lab.domains()[guest.name].domid
    for whom, send in (("alone", os.kill), ("group", os.killpg)):
        gate = Gate(lab.directory / whom)
        to = gate.command(_HELD_OCTETS, RECEIVE.removeprefix("exec "))
        program = Program(["xen-toolstack", "migrate", guest.name, "--to", to, *PATIENCE])
        wait_until("the stream is held", lambda gate=gate: gate.holds, limit=240)
        assert domid in log_dirty_domains()
        sent = time.monotonic()
        send(program.pid, signal.SIGINT)
        wait_until("log-dirty mode is off", lambda: not log_dirty_domains(), _GIVEN_UP_SECONDS)
        lab.figure(f"given up after s, {whom}", round(time.monotonic() - sent, 1))
        gate.open()
        done = program.end(limit=60)
        assert done.status == RUNNING_AT_SOURCE, done.output
        assert "aborted" in done.output
        lab.assert_runs_on(guest)
        assert lab.domains()[guest.name].domid == domid
        nothing_is_left()
    migrate(lab, guest, RECEIVE)


def kill_at(lab: Lab, moment: str, command: list[str]) -> None:
    """SIGKILL a command at the first such event in its trace; its helper and its receiver end."""
    events = lab.directory / "events"
    program = Program(["xen-toolstack", *command, *PATIENCE, "--events", events])
    wait_until(
        f"{moment} in {events}",
        lambda: events.exists() and f'"{moment}"' in events.read_text(),
        limit=120,
    )
    program.signal(signal.SIGKILL)
    program.end(10)
    events.unlink()
    wait_until(
        "no copy is left", lambda: all("--incoming" not in name for name in lab.domains()), 60
    )


KINDS: Final = ("pv", "pvh", "hvm")

SCENARIOS: Final = (
    *(
        Scenario(
            f"toolstack-save-restore-{kind}",
            partial(save_and_restore, kind=kind),
            hvm=kind == "hvm",
            suites=BOTH if kind == "pvh" else ("bookworm",),
            limit=600,
        )
        for kind in KINDS
    ),
    *(
        Scenario(
            f"toolstack-migrate-{kind}",
            partial(migrate_both_ways, kind=kind),
            hvm=kind == "hvm",
            suites=BOTH if kind == "pvh" else ("bookworm",),
            limit=600,
        )
        for kind in ("pvh", "hvm")
    ),
    *(
        Scenario(f"toolstack-libxl-helper-{kind}", partial(libxls_helper, kind=kind), limit=400)
        for kind in ("pv", "pvh")
    ),
    *(
        Scenario(
            f"toolstack-receiver-dies-{kind}",
            partial(receiver_dies, kind=kind),
            hvm=kind == "hvm",
            limit=600,
        )
        for kind in ("pvh", "hvm")
    ),
    Scenario("toolstack-guest-ignores-suspend", guest_ignores_suspend, limit=400),
    Scenario("toolstack-controller-killed", controller_is_killed, limit=600),
    Scenario("toolstack-interrupted", interrupted, limit=600),
)
