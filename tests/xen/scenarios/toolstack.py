"""`xen-toolstack` on real domains: with `xl` at the other end, with itself, and with libxl's helper
as well as ours."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import Ended, Program, run, wait_until
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.guest import IGNORES_SUSPEND
from tests.xen.dom0.lab import COMMAND_SECONDS, LIBXL, MISSING, OURS, receive_command
from tests.xen.dom0.whereabouts import log_dirty_domains, log_dirty_goes_off
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from xen_save_helper.toolstack.operations import domain_lock

if TYPE_CHECKING:
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

_STATE: Final = Path("/run/xen-save-helper")

PATIENCE: Final = ("--limit=helper_start=180", "--limit=handshake=240", "--limit=abort=30")
"""A Python program takes long to start under emulation."""

RECEIVE: Final = f"exec xen-toolstack receive {' '.join(PATIENCE)}"
"""Its trace goes to the file of the command that has started it, by the variable that it
inherits."""
BANNER: Final = r"printf 'xl migration receiver ready, send binary domain data.\n'"
DYING_RECEIVER: Final = f"{BANNER}; head -c 20000000 >/dev/null; exit 3"
"""Takes part of a guest's memory, and ends."""
DYING_LATE: Final = f"{RECEIVE.removeprefix('exec ')} | dd bs=1 count=60 status=none"
"""Takes all of the guest, which is suspended by then, and is cut off while it says that it is
ready. It is our receiver, since xl leaves its copy behind (migrate_receive exits if it cannot
report)."""

RUNNING_AT_SOURCE: Final = 1
"""The exit code of a migration after which the guest runs at the source."""

_HELD_OCTETS: Final = 16 << 20
"""A point in the first round, which has 96 MiB."""
_GIVEN_UP_SECONDS: Final = 15.0
"""From SIGINT, or the controller's death, to the end of libxc's error path, on a processor that a
guest shares."""


def toolstack(*arguments: str | Path, limit: float = COMMAND_SECONDS) -> Ended:
    return run(["xen-toolstack", *arguments], limit)


def succeeds(*arguments: str | Path, limit: float = COMMAND_SECONDS) -> Ended:
    done = toolstack(*arguments, limit=limit)
    assert done.status == 0, f"xen-toolstack {arguments[0]}: {done.output}"
    assert MISSING not in done.output, "a false alarm"
    return done


@contextmanager
def done_by(lab: Lab, helpers: int) -> Iterator[tuple[str | Path, ...]]:
    """Check that the work within the context is done by `helpers` of our helpers, which report
    success, and that none fails; 0 if libxl's helpers do it. Gives the options with which
    `xen-toolstack` makes the helpers write a trace that it starts or has `xl` start."""
    before = len(lab.events())
    yield "--events", lab.trace
    traced = [event for event in lab.events()[before:] if event["process"] == "helper"]
    told = [event["retval"] for event in traced if event["event"] == "complete"]
    assert told == [0] * helpers, traced
    assert len({event["pid"] for event in traced}) == helpers, traced


def save(lab: Lab, guest: Guest, file: Path, *options: str) -> None:
    with done_by(lab, 0 if "libxl" in options else 1) as trace:
        succeeds("save", guest.name, file, *options, *trace, *PATIENCE)
    assert guest.name not in lab.domains()


def restore(lab: Lab, guest: Guest, file: Path, *options: str) -> None:
    with done_by(lab, 0 if "libxl" in options else 1) as trace:
        succeeds("restore", file, *options, *trace, *PATIENCE)
    lab.assert_only(guest)
    guest.goes_on()


def migrate(lab: Lab, guest: Guest, to: str) -> None:
    """Our helper does the work here, and also at the other end unless `to` is libxl's own. At the
    other end the guest must be another domain, the only one, and count on."""
    before = lab.domid(guest)
    with done_by(lab, 1 if to == receive_command(LIBXL) else 2) as trace:
        succeeds("migrate", guest.name, "--to", to, *trace, *PATIENCE)
    assert lab.assert_only(guest) != before
    guest.goes_on()


def nothing_is_left() -> None:
    """Check that there is no journal, no control socket, and no guest that waits for a person. The
    file in which domains are locked stays; the locks disappear with their holders."""
    left = {str(path.relative_to(_STATE)) for path in _STATE.rglob("*")}
    assert left <= {domain_lock.FILE, "control"}, left


def save_and_restore(lab: Lab, guest: Guest) -> None:
    """`xen-toolstack save`, `xl restore`; `xl save`, `xen-toolstack restore`."""
    file = lab.directory / "saved"
    save(lab, guest, file)
    lab.restore(guest, file, LIBXL)
    lab.save(guest, file, LIBXL)
    restore(lab, guest, file)
    nothing_is_left()


def migrate_both_ways(lab: Lab, guest: Guest) -> None:
    """`xen-toolstack migrate` to `xl migrate-receive`, and to our own receiver."""
    migrate(lab, guest, receive_command(LIBXL))
    migrate(lab, guest, RECEIVE)
    nothing_is_left()


def all_of_one_guest(lab: Lab, kind: str) -> None:
    """Both migrations with one guest, which takes a minute to boot."""
    guest = lab.guest(kind)
    save_and_restore(lab, guest)
    migrate_both_ways(lab, guest)


def libxls_helper(lab: Lab, kind: str) -> None:
    """`xen-toolstack` drives libxl's helper through its pipes, and has `xl` use it."""
    guest = lab.guest(kind)
    file = lab.directory / "saved"
    save(lab, guest, file, "--helper", "libxl")
    restore(lab, guest, file, "--helper", "libxl")
    nothing_is_left()


def saves(lab: Lab) -> int:
    """How many saves our helpers have begun under our controller; a receiver's helper writes into
    the same trace."""
    return sum(event.get("operation") == "save" for event in lab.events("start"))


def receiver_dies(lab: Lab, kind: str) -> None:
    """The receiver dies in the middle of a live migration: the guest runs on here, with log-dirty
    mode off, and can still be migrated."""
    guest = lab.guest(kind)
    domid = lab.domid(guest)
    tries: tuple[tuple[str, tuple[str, ...], int], ...] = (
        (DYING_RECEIVER, (), 1),
        (DYING_RECEIVER, ("--helper", "libxl"), 0),
        (DYING_LATE, ("--limit=ready=30",), 1),
    )
    for to, options, saves_by_ours in tries:
        before = saves(lab)
        trace = ("--events", lab.trace)
        done = toolstack("migrate", guest.name, "--to", to, *PATIENCE, *options, *trace)
        assert done.status == RUNNING_AT_SOURCE, done.output
        assert saves(lab) - before == saves_by_ours
        log_dirty_goes_off()
        lab.assert_runs_on(guest, domid)
    nothing_is_left()
    migrate(lab, guest, receive_command(OURS))


def guest_ignores_suspend(lab: Lab) -> None:
    """A guest that does not suspend: neither a save nor a migration suspends it; it runs on, and no
    request is left."""
    guest = lab.guest("pvh", cmdline=IGNORES_SUSPEND)
    domid = lab.domid(guest)
    file = lab.directory / "saved"
    patience = (*PATIENCE, "--limit=suspend=5")
    done = toolstack("save", guest.name, file, *patience)
    assert done.status == 1, done.output
    assert "did not acknowledge the suspend request in time" in done.output
    assert not file.exists()
    lab.assert_runs_on(guest, domid)
    done = toolstack("migrate", guest.name, "--to", RECEIVE, "--json", *patience)
    assert done.status == RUNNING_AT_SOURCE, done.output
    assert '"rc": -8' in done.output
    log_dirty_goes_off()
    lab.assert_runs_on(guest, domid)
    node = f"/local/domain/{domid}/control/shutdown"
    assert run(["xenstore-read", node]).output.strip() == ""
    nothing_is_left()


def controller_is_killed(lab: Lab) -> None:
    """`recover` finishes what a dead controller has left: of a save whose guest is suspended, and
    of a live migration, whose log-dirty mode our helper has turned off by itself."""
    guest = lab.guest("pvh")
    domid = lab.domid(guest)
    file = lab.directory / "saved"
    for moment, *command in (
        ("suspend_done", "save", guest.name, str(file)),
        ("precopy_policy", "migrate", guest.name, "--to", RECEIVE),
    ):
        kill_at(lab, moment, command)
        assert "recover" in succeeds("list").output
        log_dirty_goes_off(_GIVEN_UP_SECONDS)
        succeeds("recover", guest.name)
        lab.assert_runs_on(guest, domid)
        nothing_is_left()
    assert list(lab.directory.iterdir()) == []
    migrate(lab, guest, receive_command(LIBXL))


def interrupted(lab: Lab) -> None:
    """SIGINT in the first round while the receiver reads nothing, for the command alone, and for
    all processes as from a terminal: log-dirty mode is soon off, and the guest runs on. The command
    ends after the receiver, which it gives time to end."""
    guest = lab.guest("pvh")
    domid = lab.domid(guest)
    for whom, send in (("alone", os.kill), ("group", os.killpg)):
        gate = Gate(lab.directory / whom)
        to = gate.command(_HELD_OCTETS, RECEIVE.removeprefix("exec "))
        program = Program(["xen-toolstack", "migrate", guest.name, "--to", to, *PATIENCE])
        wait_until("the stream is held", lambda gate=gate: gate.holds, limit=240)
        assert domid in log_dirty_domains()
        sent = time.monotonic()
        send(program.pid, signal.SIGINT)
        log_dirty_goes_off(_GIVEN_UP_SECONDS)
        lab.figure(f"given up after s, {whom}", round(time.monotonic() - sent, 1))
        assert gate.holds
        gate.open()
        done = program.end(limit=60)
        assert done.status == RUNNING_AT_SOURCE, done.output
        assert "interrupted" in done.output
        lab.assert_runs_on(guest, domid)
        nothing_is_left()
    migrate(lab, guest, RECEIVE)


def kill_at(lab: Lab, moment: str, command: list[str]) -> None:
    """Kill a command with SIGKILL at the first such event in its trace; its helper and its receiver
    end."""
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


SCENARIOS: Final = (
    Scenario(
        "toolstack-save-restore-pv",
        lambda lab: save_and_restore(lab, lab.guest("pv")),
        NONE,
        BOOKWORM,
    ),
    Scenario(
        "toolstack-save-restore-pvh",
        lambda lab: save_and_restore(lab, lab.guest("pvh")),
        BOOKWORM,
        TRIXIE,
    ),
    Scenario("toolstack-migrate-pvh", lambda lab: migrate_both_ways(lab, lab.guest("pvh"))),
    Scenario(
        "toolstack-save-restore-migrate-hvm",
        partial(all_of_one_guest, kind="hvm"),
        NONE,
        BOOKWORM,
        limit=900,
    ),
    *(
        Scenario(
            f"toolstack-libxl-helper-{kind}",
            partial(libxls_helper, kind=kind),
            NONE,
            BOOKWORM,
        )
        for kind in ("pv", "pvh")
    ),
    *(
        Scenario(
            f"toolstack-receiver-dies-{kind}",
            partial(receiver_dies, kind=kind),
            NONE,
            BOOKWORM,
        )
        for kind in ("pvh", "hvm")
    ),
    Scenario("toolstack-guest-ignores-suspend", guest_ignores_suspend, NONE, BOOKWORM),
    Scenario("toolstack-controller-killed", controller_is_killed),
    Scenario("toolstack-interrupted", interrupted),
)
