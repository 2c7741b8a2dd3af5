"""What an unmodified `xl` makes of a save helper that fails: a table, and the proof that no fault
costs a guest.

A scenario fails if this project's own promises are broken: a guest that is lost or runs twice, a
helper or its log-dirty mode left behind, a fault that did not fire. If libxl itself does wrong, the
table says so, and the scenario goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.xen import fault_table
from tests.xen.dom0 import clean_up
from tests.xen.dom0.commands import wait_until
from tests.xen.dom0.faulted import Left, limits, telling, watch
from tests.xen.dom0.lab import xen_version
from tests.xen.dom0.whereabouts import (
    Remains,
    log_dirty_domains,
    our_helpers,
    remains,
    wake,
    whereabouts,
)
from tests.xen.fault_table import FaultRow
from tests.xen.scenarios.fault_cases import MIGRATE, RESTORE, SAVE, FaultCase, some_of
from tests.xen.scenarios.fault_judgement import Seen, broken_promises, wrongs_of_libxl
from tests.xen.scenarios.fault_trials import MigrateTrial, RestoreTrial, SaveTrial, Trial
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario
from xen_save_helper.helper.hypervisors.xen.xenctrl import Xenctrl

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

_LEFT_SECONDS: Final = 10
"""Seconds for what a command has left to disappear."""


def put_to(trial_of: Callable[[Lab], Trial], cases: Sequence[FaultCase], lab: Lab) -> None:
    """Try each case in turn. Raises AssertionError if promises of this project are broken."""
    trial = trial_of(lab)
    rows: list[FaultRow] = []
    ready = False
    for case in cases:
        if not ready:
            trial.prepare()
        before = lab.domains()[trial.guest.name].domid if trial.command != "xl restore" else 0
        seen = _one(trial, case, before)
        rows.append(_row(trial, case, before, seen))
        fault_table.write(rows, lab.results / fault_table.RESULTS_NAME)
        print(fault_table.text(rows[-1:]), flush=True)
        ready = _restore_order(trial, seen)
    print(fault_table.text(rows), flush=True)
    lab.figure("faults", len(rows))
    lab.figure("libxl wrong", sum(bool(row.wrongs) for row in rows))
    broken = [f"{row.plan}: {'; '.join(row.broken)}" for row in rows if row.broken]
    assert not broken, "\n".join(broken)


def _one(trial: Trial, case: FaultCase, before: int) -> Seen:
    lab = trial.lab
    was = remains()
    traced = len(lab.events())
    watched = watch(trial.start({**limits(case.plan), "XEN_SAVE_HELPER_FAULTS": case.plan}))
    left = Left()
    try:
        wait_until("all helpers end", lambda: not our_helpers(), _LEFT_SECONDS)
    except AssertionError:
        left.helpers = [f"helper process {pid}" for pid in our_helpers()]
    now = whereabouts(lab, trial.guest, _LEFT_SECONDS)
    left.domains = [f"domain {row.name} {row.state}" for row in now.others]
    left.log_dirty = trial.live and now.domid in log_dirty_domains()
    left.traces = _new_remains(was, remains(), kept={before, now.domid})
    events = lab.events()[traced:]
    fired = sum(event["event"] == "fault" for event in events)
    woken = now.place in ("is suspended", "is paused") and wake(trial.guest, now)
    return Seen(
        watched=watched,
        now=now,
        misplaced=trial.misplaced(case.right, before, now),
        safe=trial.is_safe(now),
        woken=woken,
        left=left,
        fired=fired,
        through=_came_through(events),
    )


def _new_remains(was: Remains, now: Remains, kept: set[int]) -> list[str]:
    """Files and nodes of domains that no longer exist."""
    new = {*(now.nodes - was.nodes), *(now.files - was.files)}
    return sorted(name for name in new if _domid_of(name) not in kept)


def _domid_of(name: str) -> int | None:
    """The domain of a node such as /libxl/7 or `/vm/UUID of /local/domain/7`, or of a file such as
    userdata-d.7.UUID.libxl-json."""
    match = re.search(r"/(\d+)$|/userdata-\w\.(\d+)\.", name)
    return int(match[1] or match[2]) if match else None


def _came_through(events: Sequence[dict[str, Any]]) -> bool:
    """Whether each helper that a fault has struck could run libxc's error path to the end."""
    struck = {event["pid"] for event in events if event["event"] == "fault"}
    over = {
        event["pid"]
        for event in events
        if event["event"] == "complete"
        or (event["event"] == "failure" and event.get("what") == "channel")
    }
    return struck <= over


def _row(trial: Trial, case: FaultCase, before: int, seen: Seen) -> FaultRow:
    left = seen.left.words()
    if isinstance(trial, SaveTrial) and trial.file.exists() and seen.now.place != "is nowhere":
        left.append(f"{trial.file.stat().st_size} octets of the file")
    return FaultRow(
        xen=xen_version(),
        operation=trial.command,
        plan=case.plan,
        rule=f"{case.right.value}: {case.rule}",
        status=seen.watched.status,
        message=telling(seen.watched.output),
        ended=seen.watched.end.value,
        guest=trial.told(seen.now, before) + "; counts on once it is woken" * seen.woken,
        left=left,
        seconds=round(seen.watched.seconds, 1),
        wrongs=wrongs_of_libxl(case, seen),
        broken=broken_promises(seen),
        output=seen.watched.output,
    )


def _restore_order(trial: Trial, seen: Seen) -> bool:
    """Make dom0 fit for the next fault. Returns whether the guest is where the command expects
    it."""
    for pid in our_helpers():
        clean_up.kill(pid)
    for row in seen.now.others:
        trial.lab.xl(["destroy", str(row.domid)])
    if isinstance(trial, RestoreTrial) and seen.now.place == "is nowhere":
        return True
    if seen.now.place == "runs" or seen.woken:
        if seen.left.log_dirty:
            with Xenctrl() as xen:
                xen.logdirty_off(seen.now.domid)
        trial.file.unlink(missing_ok=True)
        return not isinstance(trial, RestoreTrial)
    if seen.now.domid:
        trial.lab.xl(["destroy", str(seen.now.domid)])
    elif isinstance(trial, SaveTrial) and seen.watched.status == 0:
        trial.lab.restore(trial.guest, trial.file)
        return True
    trial.guest = trial.lab.guest("pvh")
    return not isinstance(trial, RestoreTrial)


SCENARIOS: Final = (
    *(
        scenario
        for trial, operation, cases in (
            (SaveTrial, "save", SAVE),
            (RestoreTrial, "restore", RESTORE),
            (MigrateTrial, "migrate", MIGRATE),
        )
        for scenario in (
            Scenario(
                f"xl-faults-{operation}", partial(put_to, trial, cases), NONE, BOOKWORM, limit=1500
            ),
            Scenario(
                f"xl-some-faults-{operation}",
                partial(put_to, trial, some_of(cases)),
                NONE if operation == "migrate" else BOOKWORM,
            ),
        )
    ),
)
