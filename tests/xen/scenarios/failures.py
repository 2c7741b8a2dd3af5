"""What goes wrong in the middle of `xl migrate`; each time the guest must run on at the source."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from tests.xen.dom0 import clean_up
from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.gate import Gate
from tests.xen.dom0.guest import IGNORES_SUSPEND
from tests.xen.dom0.lab import receive_command
from tests.xen.dom0.slow_link import over_slow_link
from tests.xen.dom0.whereabouts import log_dirty_domains, log_dirty_goes_off
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from xen_save_helper.helper.hypervisors.xen.xenstore import Xenstore

if TYPE_CHECKING:
    from tests.xen.dom0.commands import Program
    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

MIB: Final = 1 << 20
NEVER: Final = 1 << 40
_DIRTY_MIB: Final = 8
_REACHED_SECONDS: Final = 240
_FAILED_SECONDS: Final = 120
_TERMINATED_SECONDS: Final = 1.0
"""Within this time a helper ends that gets SIGTERM in a blocked write: that is our promise."""
_INTERRUPTED_SECONDS: Final = 5.0
"""The same if `xl` is ended with it, which keeps the one processor busy."""


def our_helpers(operation: str = "--save-domain") -> list[int]:
    """The running helpers, by pid."""
    return [
        pid
        for (pid, _start), command in clean_up.processes().items()
        if "xen-save-helper" in command and operation in command
    ]


@dataclass(frozen=True)
class Moment:
    """When a helper is killed. The stream is held after `octets(guest)`; the kill follows once
    `reached` holds. `dirty`: the guest keeps overwriting that many MiB, and the link becomes
    slow."""

    name: str
    reached: Callable[[Lab, Gate], bool]
    octets: Callable[[Guest], int] = lambda _guest: NEVER
    env: dict[str, str] = field(default_factory=dict)
    dirty: int = 0
    cmdline: str = ""


def _held_in_round(lab: Lab, gate: Gate, rounds: int) -> bool:
    return gate.holds and len(lab.events("round")) >= rounds


def _held_in_last_copy(lab: Lab, gate: Gate) -> bool:
    suspended = [e for e in lab.events("callback") if e.get("name") == "suspend"]
    return gate.holds and bool(suspended)


def _past_first_round(guest: Guest) -> int:
    """A point within the second round, which has over 8 MiB."""
    return guest.octets + 10 * MIB


def _asked_to_suspend(_lab: Lab, _gate: Gate) -> bool:
    """Whether any domain is in log-dirty mode. It can only be the guest; the receiver's has no name
    at first. This starts no process, which would take the one processor from the migration."""
    with Xenstore() as store:
        return any(
            store.text(f"/local/domain/{domid}/control/shutdown") == "suspend"
            for domid in store.directory("/local/domain")
        )


MOMENTS: Final = (
    Moment("starting", lambda _lab, _gate: bool(our_helpers())),
    Moment("first-round", lambda _lab, gate: gate.holds, lambda _guest: MIB),
    Moment(
        "later-round",
        partial(_held_in_round, rounds=1),
        _past_first_round,
        {"XEN_SAVE_HELPER_MAX_ITERATIONS": "100", "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0"},
        _DIRTY_MIB,
    ),
    Moment("suspending", _asked_to_suspend, cmdline=IGNORES_SUSPEND),
    Moment(
        "last-copy",
        _held_in_last_copy,
        _past_first_round,
        {"XEN_SAVE_HELPER_MAX_ITERATIONS": "1", "XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0"},
        _DIRTY_MIB,
    ),
)


def killed_helper(lab: Lab, moment: Moment) -> None:
    """Our helper is killed under `xl migrate`: xl reports it, and the guest runs on. If log-dirty
    mode was on, it stays on, since nobody is left to end it."""
    guest = lab.guest("pvh", cmdline=moment.cmdline, dirty=moment.dirty)
    domid = lab.domid(guest)
    gate = Gate(lab.directory / "gate")
    receive = gate.command(moment.octets(guest), receive_command())
    if moment.dirty:
        receive = over_slow_link(guest.octets, receive)
    xl = lab.start_migrate(guest, receive=receive, env=moment.env)
    wait_until(
        f"moment {moment.name}", lambda: moment.reached(lab, gate), _REACHED_SECONDS, every=0.05
    )
    (helper,) = our_helpers()
    os.kill(helper, signal.SIGKILL)
    gate.open()
    assert_failed(xl, "died due to fatal signal Killed")
    lab.assert_runs_on(guest, domid)


def receiver_dies(lab: Lab) -> None:
    """The receiver dies in the middle of the first round: the guest runs on, log-dirty mode is off,
    and the guest can still be migrated."""
    guest = lab.guest("pvh")
    domid, gate, xl = held_migration(lab, guest)
    for pid in receivers():
        # The end of one may already have ended another.
        clean_up.kill(pid)
    gate.open()
    assert_failed(xl)
    # The domain that it had begun to build stays behind: nobody is left to clear it up.
    for row in lab.domains().values():
        if row.name != guest.name:
            lab.xl(["destroy", str(row.domid)])
    log_dirty_goes_off()
    lab.assert_runs_on(guest, domid)
    lab.migrate(guest)


def interrupted(lab: Lab, number: signal.Signals, *, group: bool) -> None:
    """The receiver stops reading, and `xl migrate` gets a signal: alone (our helper then sees that
    libxl has gone), or with all processes of its terminal's foreground (our helper gets it as
    well). While the receiver still does not read, our helper turns log-dirty mode off and ends. The
    guest runs on."""
    guest = lab.guest("pvh")
    domid, gate, xl = held_migration(lab, guest)
    if group:
        os.killpg(xl.pid, number)
    else:
        xl.signal(number)
    done = xl.end(_FAILED_SECONDS)
    assert done.status != 0
    assert_ends(lab, _INTERRUPTED_SECONDS)
    log_dirty_goes_off()
    assert gate.holds
    gate.open()
    lab.assert_runs_on(guest, domid)
    lab.migrate(guest)


def helper_terminated(lab: Lab) -> None:
    """Our helper, blocked in a write that nobody reads, gets SIGTERM, as libxl would send it: it
    reports the failure, and ends at once, with log-dirty mode off."""
    guest = lab.guest("pvh")
    domid, gate, xl = held_migration(lab, guest)
    (helper,) = our_helpers()
    os.kill(helper, signal.SIGTERM)
    assert_ends(lab, _TERMINATED_SECONDS)
    (complete,) = (e for e in lab.events("complete") if e["pid"] == helper)
    assert complete["retval"] == -1
    log_dirty_goes_off()
    assert gate.holds
    gate.open()
    assert_failed(xl, "SIGTERM received")
    lab.assert_runs_on(guest, domid)
    lab.migrate(guest)


def held_migration(lab: Lab, guest: Guest) -> tuple[int, Gate, Program]:
    """An `xl migrate` whose stream is held in the first round. Returns the guest's domid (it is in
    log-dirty mode), the gate that holds the stream, and the command."""
    domid = lab.domid(guest)
    gate = Gate(lab.directory / "gate")
    xl = lab.start_migrate(guest, receive=gate.command(16 * MIB, receive_command()))
    wait_until("the stream is held", lambda: gate.holds, _REACHED_SECONDS)
    assert log_dirty_domains() == {domid}
    return domid, gate, xl


def receivers() -> list[int]:
    """All processes at the receiving end of a migration, except the gate."""
    found = []
    for (pid, _start), command in clean_up.processes().items():
        receiving = "migrate-receive" in command or "--restore-domain" in command
        if receiving and "dom0.gate" not in command and "xl migrate -s" not in command:
            found.append(pid)
    return found


def assert_failed(xl: Program, word: str = "") -> None:
    """Check that `xl migrate` reports a failure, with `word` in its output."""
    done = xl.end(_FAILED_SECONDS)
    assert done.status != 0, "xl migrate succeeded"
    assert word in done.output, f"no {word!r} in what xl migrate said"


def assert_ends(lab: Lab, limit: float) -> None:
    """Check that the saving helper ends within `limit` seconds, and print how long it took."""
    began = time.monotonic()
    wait_until("our helper ends", lambda: not our_helpers(), _FAILED_SECONDS, every=0.02)
    seconds = time.monotonic() - began
    lab.figure("helper ended after s", round(seconds, 2))
    assert seconds <= limit, f"the helper took {seconds:.2f} s to end"


_SELDOM: Final = ("first-round", "later-round", "suspending")
"""Moments that are similar to others, and some for which a guest has to be booted."""

SCENARIOS: Final = (
    *(
        Scenario(
            f"killed-helper-{moment.name}-pvh",
            partial(killed_helper, moment=moment),
            NONE if moment.name in _SELDOM else BOOKWORM,
            (BOOKWORM if moment.name in _SELDOM else NONE)
            + (TRIXIE if moment.name == "last-copy" else NONE),
        )
        for moment in MOMENTS
    ),
    Scenario("receiver-dies-pvh", receiver_dies),
    Scenario("interrupted-sigint-pvh", partial(interrupted, number=signal.SIGINT, group=True)),
    Scenario(
        "interrupted-sigterm-pvh",
        partial(interrupted, number=signal.SIGTERM, group=False),
        NONE,
        BOOKWORM,
    ),
    Scenario("helper-sigterm-blocked-pvh", helper_terminated),
)
