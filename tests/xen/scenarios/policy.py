"""The precopy policy of a user of the drop-in: its rounds, counted in the captured stream."""

from __future__ import annotations

import json
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.xen.dom0.lab import COMMAND_SECONDS, receive_command
from tests.xen.dom0.slow_link import over_slow_link
from tests.xen.dom0.whereabouts import log_dirty_goes_off
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario

if TYPE_CHECKING:
    from pathlib import Path

    from tests.xen.dom0.guest import Guest
    from tests.xen.dom0.lab import Lab

_DIRTY_MIB: Final = 2
_NO_THRESHOLD: Final = {"XEN_SAVE_HELPER_DIRTY_THRESHOLD": "0"}
"""With this a guest is not stopped because little of it is dirty, as long as anything is."""
_ROUNDS_BEFORE_ABORT: Final = 2
_INSPECT_SECONDS: Final = 120


def abort_then_iterations(lab: Lab, iterations: int) -> None:
    """Both policies with one guest, which has to be booted for it: a migration that was given up
    can succeed later."""
    guest = lab.guest("pvh", dirty=_DIRTY_MIB)
    abort_after(lab, guest)
    max_iterations(lab, guest, iterations)


def max_iterations(lab: Lab, guest: Guest, iterations: int) -> None:
    """The stream has as many rounds as allowed, and the final copy."""
    stream = lab.directory / "stream"
    env = {**_NO_THRESHOLD, "XEN_SAVE_HELPER_MAX_ITERATIONS": str(iterations)}
    lab.migrate(guest, env=env, capture=stream, slow=True)
    rounds = inspected(stream)["summary"]["rounds"]
    lab.figure("rounds", rounds)
    asked = lab.events("precopy_policy")
    after_rounds = [e for e in asked if e["iteration"] > 0 and e["dirty_count"] >= 0]
    lab.figure("dirty pages", [e["dirty_count"] for e in after_rounds])
    assert rounds == iterations + 1
    assert asked[-1]["decision"] == "STOP_AND_COPY"
    assert asked[-1]["why"] == f"{iterations} rounds, at most {iterations}"


def abort_after(lab: Lab, guest: Guest) -> None:
    """The migration is given up after as many rounds as allowed, which xl is told. The guest runs
    on, with log-dirty mode off."""
    domid = lab.domid(guest)
    stream = lab.directory / "stream"
    env = {**_NO_THRESHOLD, "XEN_SAVE_HELPER_ABORT_AFTER": str(_ROUNDS_BEFORE_ABORT)}
    receive = over_slow_link(guest.octets, receive_command(capture=stream))
    program = lab.start_migrate(guest, receive=receive, env=env)
    done = program.end(COMMAND_SECONDS)
    assert done.status != 0
    assert "precopy policy: abort" in done.output
    log_dirty_goes_off()
    lab.assert_runs_on(guest, domid)
    rounds = inspected(stream, whole=False)["summary"]["rounds"]
    lab.figure("rounds before the abort", rounds)
    assert rounds == _ROUNDS_BEFORE_ABORT
    assert lab.events("precopy_policy")[-1]["decision"] == "ABORT"


def inspected(stream: Path, *, whole: bool = True) -> dict[str, Any]:
    """What our `inspect` says of a stream, which may be complete or cut off."""
    done = subprocess.run(
        ["xen-toolstack", "inspect", "--json", stream],
        check=False,
        capture_output=True,
        text=True,
        timeout=_INSPECT_SECONDS,
    )
    assert done.returncode == (0 if whole else 1), done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


SCENARIOS: Final = (
    Scenario("policy-abort-then-10-iterations-pvh", partial(abort_then_iterations, iterations=10)),
    Scenario(
        "policy-abort-then-1-iteration-pvh",
        partial(abort_then_iterations, iterations=1),
        NONE,
        BOOKWORM,
    ),
)
