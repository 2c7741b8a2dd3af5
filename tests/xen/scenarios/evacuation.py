"""`xen-toolstack evacuate` of real domains, to the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.lab import receive_command
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE, RECEIVE, toolstack
from xen_save_helper.toolstack.evacuation import record
from xen_save_helper.toolstack.operations import domain_lock

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

_SECONDS: Final = 900.0
"""For three guests, one after the other, under emulation."""


def evacuates(lab: Lab, kinds: tuple[str, ...]) -> None:
    """All guests move to our receiver, then to xl's, one at a time at each; each is another domain
    afterwards, and counts on."""
    guests = [lab.guest(kind) for kind in kinds]
    names = {guest.name for guest in guests}
    for to in (RECEIVE, receive_command()):
        before = {guest.name: lab.domid(guest) for guest in guests}
        plan = _evacuate("--dry-run", "--to", to)
        assert {move["name"] for move in plan["moves"]} == names
        assert not plan["stays"]
        assert plan["at_once"] == 1
        result = _evacuate("--to", to, "--events", lab.trace, *PATIENCE)
        assert result["moved"] == result["of"] == len(guests)
        lab.figure(f"seconds for {len(guests)} guests", round(result["total_seconds"]))
        wait_until("the old domains are gone", lambda: set(lab.domains()) == names, 10)
        for guest in guests:
            assert lab.domid(guest) != before[guest.name]
            guest.goes_on()
        _nothing_is_left()


def one_cannot_move(lab: Lab) -> None:
    """A paused guest stays; the plan and the exit code say so, and the other one goes."""
    paused, other = lab.guest("pvh"), lab.guest("pvh")
    domid, before = lab.domid(paused), lab.domid(other)
    done = toolstack("pause", paused.name)
    assert done.status == 0, done.output
    result = _evacuate("--to", RECEIVE, *PATIENCE, status=1)
    fates = {guest["name"]: guest["fate"] for guest in result["guests"]}
    assert fates == {paused.name: "stays", other.name: "moved"}
    done = toolstack("unpause", paused.name)
    assert done.status == 0, done.output
    wait_until("the old domain is gone", lambda: set(lab.domains()) == set(fates), 10)
    assert lab.domid(paused) == domid
    assert lab.domid(other) != before
    for guest in (paused, other):
        guest.goes_on()
    _nothing_is_left()


def _evacuate(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    """What the command prints with --json; it must exit with `status`."""
    done = toolstack("evacuate", "--json", *arguments, limit=_SECONDS)
    assert done.status == status, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def _nothing_is_left() -> None:
    """Remove the record of who has moved, and check that beside it there is only the file in which
    domains are locked."""
    directory = Path("/run/xen-save-helper")
    (directory / record.FILE).unlink(missing_ok=True)
    assert {path.name for path in directory.glob("*")} <= {domain_lock.FILE, "control"}


SCENARIOS: Final = (
    Scenario("toolstack-evacuate-pvh", lambda lab: evacuates(lab, ("pvh",) * 3), NONE, BOOKWORM),
    Scenario(
        "toolstack-evacuate-mixed",
        lambda lab: evacuates(lab, ("pv", "pvh", "hvm")),
        NONE,
        (*BOOKWORM, *TRIXIE),
        # A PV guest's dirty pages cannot be logged without.
        shadow=True,
        limit=1800,
    ),
    Scenario("toolstack-evacuate-one-stays", one_cannot_move, NONE, BOOKWORM),
)
