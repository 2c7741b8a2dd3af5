"""Says on stderr how an evacuation goes: in lines; `evacuation_display` has a table."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from xen_save_helper.toolstack.commands.common import PROGRAM
from xen_save_helper.toolstack.commands.migrate import where_now
from xen_save_helper.toolstack.evacuation.outcome import Fate, GuestEnd
from xen_save_helper.toolstack.evacuation.run import Watcher
from xen_save_helper.toolstack.xl.outcome import told_once

if TYPE_CHECKING:
    from xen_save_helper.toolstack.evacuation.plan import Guest, Plan


def why_not_moved(end: GuestEnd) -> str:
    """What keeps a guest from its destination and what has become of it, as a line for people."""
    refusals = [f"{one.destination}: {one.reason}" for one in end.tried]
    reason = "; ".join(
        [*refusals, f"{end.destination}: {end.reason}"] if refusals else [end.reason]
    )
    if end.result is not None:
        return told_once(reason, where_now(end.result))
    return reason


class View(Watcher):
    """Says on stderr which guest has failed and why, when it has; and no more, for --json."""

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    def begins(self, plan: Plan) -> None:
        """The plan is about to be carried out."""

    def ended(self, end: GuestEnd) -> None:
        if end.fate not in {Fate.MOVED, Fate.NOT_BEGUN}:
            self.say(f"{PROGRAM}: {end.name}: {end.fate}: {' '.join(why_not_moved(end).split())}")

    def close(self) -> None:
        """Nothing more is to be shown."""


class Lines(View):
    """Shows an evacuation as lines, for a file or a terminal that cannot repaint."""

    def __init__(self) -> None:
        self._moved = self._all = 0

    def begins(self, plan: Plan) -> None:
        self._all = len(plan.moves)

    def began(self, guest: Guest, destination: str, bandwidth: int) -> None:
        self.say(f"{PROGRAM}: {guest.name}: on its way to {destination}")

    def refused(self, guest: Guest, destination: str, reason: str, following: str) -> None:
        self.say(f"{PROGRAM}: {guest.name}: {destination}: {reason}; trying {following}")

    def ended(self, end: GuestEnd) -> None:
        super().ended(end)
        if end.fate is Fate.MOVED:
            self._moved += 1
            took = "" if end.result is None else f" in {end.result.total_seconds:.1f} s"
            count = f"{self._moved} of {self._all}"
            self.say(f"{PROGRAM}: {end.name}: moved to {end.destination}{took} ({count})")
