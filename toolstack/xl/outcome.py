"""How a migration ended: the four outcomes of `xl migrate`, and a fifth; exit codes; the JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from typing import Any, Final

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.rules.handshake import Sender


class ExitCode(IntEnum):
    """What the commands exit with. All but migrate and demo use the first three only."""

    SUCCESS = 0
    FAILED = 1
    """Failed; for migrate and demo: and the guest runs at the source."""
    USAGE = 2
    POSTCOPY_FAILED = 3
    """Failed after the postcopy transition: suspended at the source, never resumed."""
    UNDEFINED = 4
    """The link was lost after GO: the guest is suspended at the source and may run at the
    destination."""
    GUEST_DIED = 5
    """The guest itself crashed or its process ended: it runs nowhere, and no migration rule can
    bring it back."""


class Outcome(Enum):
    SUCCESS = "success"
    RUNNING_AT_SOURCE = "running-at-source"
    POSTCOPY_FAILED = "postcopy-failed"
    UNDEFINED = "undefined"
    GUEST_DIED = "guest-died"


EXIT_CODES: Final = {
    Outcome.SUCCESS: ExitCode.SUCCESS,
    Outcome.RUNNING_AT_SOURCE: ExitCode.FAILED,
    Outcome.POSTCOPY_FAILED: ExitCode.POSTCOPY_FAILED,
    Outcome.UNDEFINED: ExitCode.UNDEFINED,
    Outcome.GUEST_DIED: ExitCode.GUEST_DIED,
}


def outcome_of(end: Sender) -> Outcome:
    """The outcome that an end of the sender's machine stands for."""
    return Outcome(end.value)


@dataclass(frozen=True)
class PostcopyResult:
    """`pages` sent after the transition, `faults` among them that the guest waited for, and how
    long it waited (measured in the guest; None where the destination is out of our sight). As for
    None of the first two, see MigrationResult."""

    pages: int | None
    faults: int | None
    fault_p50_us: float | None
    fault_p99_us: float | None


@dataclass(frozen=True)
class GuestResult:
    """Where the guest is now and what it says of itself; None where that is out of sight."""

    host: str | None
    state: str | None
    steps: int | None
    pages_checked: int | None
    memory_ok: bool | None


@dataclass(frozen=True)
class MigrationResult:
    """What `migrate` returns, and prints with --json.

    `total_seconds` runs from the start of the receiver to the end of the handshake.
    `downtime_seconds` is from the guest's last step at the source to its first at the destination;
    where the destination is out of sight, from its suspension to the destination's report; None
    where it never stood still. `stopped_seconds`: for how long our own processes on this machine
    were stopped on the way, 0 where that was not worth a word. The three that the helper counts
    are None where it did not live to tell, or speaks libxl's protocol, which has no word for them.
    """

    outcome: Outcome
    rc: Error
    mode: str
    postcopy_transitioned: str
    rounds: int | None
    pages_sent: int | None
    bytes_sent: int | None
    total_seconds: float
    downtime_seconds: float | None
    stopped_seconds: float
    postcopy: PostcopyResult | None
    guest: GuestResult
    reason: str
    warnings: tuple[str, ...] = ()
    """What a person should know of a migration that succeeded, a line for each."""

    @property
    def exit_code(self) -> ExitCode:
        return EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome.value}
