"""What became of each guest of an evacuation, and the exit code of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from xen_save_helper.toolstack.xl.outcome import ExitCode, MigrationResult, Outcome


class Fate(StrEnum):
    """What became of a guest, as the table and JSON say it."""

    MOVED = "moved"
    MOVED_BEFORE = "moved before"
    """By an earlier run of the command."""
    STAYS = "stays"
    """It could not be moved, and is here as before."""
    NOT_BEGUN = "not begun"
    """The evacuation ended before its turn."""
    NOT_HERE = "not here"
    """When its turn came, it was no longer on this host."""
    DIED = "died"
    """The guest itself crashed, shut down or was destroyed."""
    LEFT_SUSPENDED = "left suspended"
    """Its migration failed after the postcopy transition."""
    UNDEFINED = "undefined"
    """The link was lost after GO: it may run at the destination."""


FATES: Final = {
    Outcome.SUCCESS: Fate.MOVED,
    Outcome.RUNNING_AT_SOURCE: Fate.STAYS,
    Outcome.POSTCOPY_FAILED: Fate.LEFT_SUSPENDED,
    Outcome.UNDEFINED: Fate.UNDEFINED,
    Outcome.GUEST_DIED: Fate.DIED,
}

_CODES: Final = (
    (Fate.UNDEFINED, ExitCode.UNDEFINED),
    (Fate.LEFT_SUSPENDED, ExitCode.POSTCOPY_FAILED),
    (Fate.DIED, ExitCode.GUEST_DIED),
    (Fate.STAYS, ExitCode.FAILED),
    (Fate.NOT_BEGUN, ExitCode.FAILED),
    (Fate.NOT_HERE, ExitCode.FAILED),
)
"""The worst first: a guest that may run twice, one that runs nowhere but can be saved by a person,
one that is lost, and those that run here."""


@dataclass(frozen=True)
class Try:
    """A destination that a guest was refused at, before its first page was sent."""

    destination: str
    reason: str


@dataclass(frozen=True)
class GuestEnd:
    """How an evacuation ended for a guest. `memory` is in bytes, None if it is not here;
    `destination` is where it is, or the last that was tried; `result` is its migration's, if one
    was begun; `tried` are the destinations that refused it before."""

    name: str
    memory: int | None
    destination: str | None
    fate: Fate
    reason: str = ""
    tried: Sequence[Try] = ()
    result: MigrationResult | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "memory": self.memory,
            "destination": self.destination,
            "fate": self.fate.value,
            "reason": self.reason,
            "tried": [{"destination": one.destination, "reason": one.reason} for one in self.tried],
            "migration": None if self.result is None else self.result.as_json(),
        }


@dataclass(frozen=True)
class EvacuationResult:
    """How an evacuation ended: each guest, once; `interrupted`: by a signal, or a cancellation."""

    guests: Sequence[GuestEnd]
    seconds: float
    interrupted: bool = False

    @property
    def exit_code(self) -> ExitCode:
        """That of the guest that fared worst."""
        fates = {guest.fate for guest in self.guests}
        return next((code for fate, code in _CODES if fate in fates), ExitCode.SUCCESS)

    def having(self, *fates: Fate) -> list[GuestEnd]:
        return [guest for guest in self.guests if guest.fate in fates]

    def as_json(self) -> dict[str, Any]:
        return {
            "moved": len(self.having(Fate.MOVED, Fate.MOVED_BEFORE)),
            "of": len(self.guests),
            "interrupted": self.interrupted,
            "total_seconds": round(self.seconds, 6),
            "guests": [guest.as_json() for guest in self.guests],
        }
