"""What is wrong with the way a command ended whose helper had a fault, and who is to blame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.xen.dom0.faulted import End, Left, Watched
from tests.xen.scenarios.fault_cases import FaultCase, Right

if TYPE_CHECKING:
    from tests.xen.dom0.whereabouts import Whereabouts


@dataclass(frozen=True)
class Seen:
    """What could be seen of one fault in the end. `misplaced` says what is wrong with the guest's
    place, "" for nothing. `safe`: nothing of the guest is lost. `woken`: it was left suspended or
    paused, and counts on once it is resumed. `fired` is how often the fault struck; `through`
    whether the helper that it struck could run libxc's error path to the end."""

    watched: Watched
    now: Whereabouts
    misplaced: str
    safe: bool
    woken: bool
    left: Left
    fired: int
    through: bool


def wrongs_of_libxl(case: FaultCase, seen: Seen) -> list[str]:
    """What libxl does wrong."""
    found = []
    watched = seen.watched
    if watched.end is not End.ITSELF:
        found.append(f"waits for ever: {case.waits} ({watched.end.value})")
    if watched.status is not None:
        if watched.status < 0:
            found.append(f"xl died by signal {-watched.status}")
        elif (watched.status == 0) != (case.right is Right.SUCCEEDS):
            found.append(f"xl says {'success' if watched.status == 0 else 'failure'}")
    if seen.misplaced:
        found.append(seen.misplaced)
    if seen.left.domains:
        found.append("leaves a domain behind")
    if seen.left.log_dirty and not seen.through:
        found.append("leaves the guest in log-dirty mode, which a helper that has gone cannot end")
    if seen.left.traces:
        found.append("leaves files or nodes of the domain behind")
    return found


def broken_promises(seen: Seen) -> list[str]:
    """What this project promises, and has not kept."""
    found = []
    if not seen.fired:
        found.append("the fault did not fire")
    if not (seen.safe or seen.woken):
        found.append(f"the guest is lost: it {seen.now.place} {seen.now.detail}".rstrip())
    if seen.now.running > 1:
        found.append(f"{seen.now.running} guests run")
    if seen.left.helpers:
        found.append("a helper is left")
    if seen.left.log_dirty and seen.through:
        found.append("log-dirty mode is left on by a helper that could have ended it")
    return found
