"""`xl save`, `xl restore` and `xl migrate` of one guest that meets one fault after another: how
each command is started, and where the guest belongs afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.xen.dom0.lab import receive_command
from tests.xen.scenarios.fault_cases import Right

if TYPE_CHECKING:
    from tests.xen.dom0.commands import Program
    from tests.xen.dom0.lab import Lab
    from tests.xen.dom0.whereabouts import Whereabouts


class Trial:
    """A guest that meets one fault after another."""

    command = ""
    live = False
    """Whether the guest is in log-dirty mode while the command works."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.guest = lab.guest("pvh")
        self.file = lab.directory / "saved"

    def prepare(self) -> None:
        """Put the guest where the command expects it. It runs."""

    def start(self, env: dict[str, str | None]) -> Program:
        raise NotImplementedError

    def misplaced(self, right: Right, before: int, now: Whereabouts) -> str:
        """What is wrong with the guest's place, "" for nothing. `before` is its domid."""
        raise NotImplementedError

    def told(self, now: Whereabouts, before: int) -> str:
        """The guest's place, in words."""
        place = f"{now.place}{' and counts' if now.place == 'runs' else ''}"
        if now.domid and before:
            place += " at the source" if now.domid == before else " at the destination"
        return place

    def is_safe(self, now: Whereabouts) -> bool:
        """Whether nothing of the guest is lost."""
        return now.place == "runs"


class SaveTrial(Trial):
    command = "xl save"

    def start(self, env: dict[str, str | None]) -> Program:
        return self.lab.start_xl(["save", self.guest.name, self.file], env=env)

    def misplaced(self, right: Right, before: int, now: Whereabouts) -> str:
        if right is Right.SUCCEEDS:
            return "" if now.place == "is nowhere" else f"the guest {now.place} after its save"
        return _is_at_source(before, now)

    def told(self, now: Whereabouts, before: int) -> str:
        if now.place == "is nowhere" and self.file.exists():
            return "is in the file"
        return super().told(now, 0)

    def is_safe(self, now: Whereabouts) -> bool:
        return super().is_safe(now) or self.file.exists()


class RestoreTrial(Trial):
    """Restores from one file, as long as none succeeds."""

    command = "xl restore"

    def prepare(self) -> None:
        self.lab.save(self.guest, self.file)

    def start(self, env: dict[str, str | None]) -> Program:
        return self.lab.start_xl(["restore", self.file], env=env)

    def misplaced(self, right: Right, before: int, now: Whereabouts) -> str:
        wanted = "runs" if right is Right.SUCCEEDS else "is nowhere"
        return "" if now.place == wanted else f"the guest {now.place}"

    def told(self, now: Whereabouts, before: int) -> str:
        return "is in the file" if now.place == "is nowhere" else super().told(now, 0)

    def is_safe(self, now: Whereabouts) -> bool:
        return super().is_safe(now) or now.place == "is nowhere"


class MigrateTrial(Trial):
    command = "xl migrate"
    live = True

    def start(self, env: dict[str, str | None]) -> Program:
        return self.lab.start_migrate(self.guest, receive=receive_command(), env=env)

    def misplaced(self, right: Right, before: int, now: Whereabouts) -> str:
        if right is Right.FAILS:
            return _is_at_source(before, now)
        if now.place == "runs":
            return "the guest runs at the source" if now.domid == before else ""
        return f"the guest {now.place}"


def _is_at_source(before: int, now: Whereabouts) -> str:
    if now.place == "runs":
        return "" if now.domid == before else "the guest runs at the destination"
    return f"the guest {now.place}"
