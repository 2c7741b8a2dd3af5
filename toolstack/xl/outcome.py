"""Outcomes of a migration: the four of `xl migrate` and a fifth, their exit codes and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum, IntEnum
from typing import Any, Final

from xen_save_helper.ipc_schema.errors import Error
from xen_save_helper.toolstack.operations.settle import DEAD, how_guest_ended
from xen_save_helper.toolstack.rules.handshake import Sender


class ExitCode(IntEnum):
    """Exit codes of the commands; all but migrate and demo use the first three only."""

    SUCCESS = 0
    FAILED = 1
    """Failed; after migrate and demo, the guest runs at the source."""
    USAGE = 2
    POSTCOPY_FAILED = 3
    """Failed after the postcopy transition: the guest is left suspended at the source."""
    UNDEFINED = 4
    """The link was lost after GO: the guest is suspended at the source and may run at the
    destination."""
    GUEST_DIED = 5
    """The guest itself crashed, shut down or was destroyed: it runs nowhere, and no rule of
    migration can bring it back."""


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


def where_guest_is(state: str | None, place: str) -> str:
    """What has become of a guest, as a clause. `state` is that of `settle.state_of`, `place` a word
    for its host."""
    if state is None or state in DEAD:
        return how_guest_ended(state)
    return f"the guest is {state} {place}"


def told_once(reason: str, now: str) -> str:
    """A failure and what has become of the guest, which the reason may have said already."""
    return reason if now in reason else f"{reason}; {now}"


def outcome_of(end: Sender) -> Outcome:
    """The outcome for an end of the sender's machine."""
    return Outcome(end.value)


@dataclass(frozen=True)
class PostcopyResult:
    """`pages` sent after the transition, the `faults` among them that the guest waited for, and how
    long it waited for one, in microseconds (measured in the guest; None if the destination is out
    of sight). The first two may be None as in MigrationResult."""

    pages: int | None
    faults: int | None
    fault_p50_us: float | None
    fault_p99_us: float | None


@dataclass(frozen=True)
class GuestResult:
    """Where the guest is now and what it reports of itself; None if that is out of sight."""

    host: str | None
    state: str | None
    steps: int | None
    pages_checked: int | None
    memory_ok: bool | None


@dataclass(frozen=True)
class MigrationResult:
    """What `migrate` returns, and prints with --json.

    `total_seconds` runs from the start of the receiver to the end of the handshake.
    `downtime_seconds` runs from the guest's last step at the source to its first at the
    destination, or, if the destination is out of sight, from its suspension to the destination's
    report; None if it never stood still. `stopped_seconds` is how long our own processes on this
    machine were stopped meanwhile, 0 if not worth mentioning. The helper counts `rounds`,
    `pages_sent` and `bytes_sent`; they are None if it died first, or speaks libxl's protocol, which
    cannot tell them.
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
    """What a person should know about a migration that succeeded, a line each."""

    @property
    def exit_code(self) -> ExitCode:
        return EXIT_CODES[self.outcome]

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "outcome": self.outcome.value}
