"""The handshake of `xl migrate` and `xl migrate-receive`, as two machines without I/O.

Each state of a machine is one action that the caller carries out; its result is the event that
leads to the next state, until an end is reached. Everything that decides where the guest may run
after a failure is in `SENDER_TABLE` and `RECEIVER_TABLE` (xl: migrate_domain, migrate_receive).

The verdict (READ_VERDICT, EXAMINE, ACCEPT, REFUSE) is ours alone: xl finds out what a guest lacks
when the guest has arrived. It is sent only if the sender asks for it; otherwise these actions pass
in silence. So is SERVE_PAGES, for a guest whose last pages go over a link of their own. Apart from
these the tables differ from xl in three places, each of which leaves one guest where xl leaves none
or two half ones:
- xl destroys the source after a postcopy whose sync message never came. Nobody knows then whether
  the guest was resumed, so the source is kept, as after any failure past the transition.
- The receiver sends the sync message after it has given the guest its name, not before.
- A receiver that cannot send its report destroys its copy all the same.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, Generic, TypeVar

INCOMING: Final = "--incoming"
MIGRATED_AWAY: Final = "--migratedaway"
POSTCOPY_INCONSISTENT: Final = "--postcopy-inconsistent"


class Event(Enum):
    """How an action ended: OK or FAILED for most, the others for the actions that they name.

    A read is FAILED by other bytes than expected, end of file, its limit, or a request to abort.
    """

    OK = "ok"
    FAILED = "failed"
    TRANSITIONED = "transitioned"
    """RUN_STREAM: postcopy ended well."""
    FAILED_AFTER_TRANSITION = "failed after the postcopy transition"
    NEVER_SUSPENDED = "the guest never suspended"
    """RUN_STREAM: ERROR_GUEST_TIMEDOUT."""
    GUEST_DIED = "the guest died"
    """RUN_STREAM, RESUME, SETTLE: no guest is left, here or there."""
    NOT_STARTED = "the destination could not start the guest"
    """READ_REPORT."""
    PAGES_LEFT = "the guest runs, and its last pages are still here"
    """READ_REPORT."""
    NOT_AWAITED = "nobody waits for its last pages any more"
    """SERVE_PAGES."""
    RESUMED = "resumed"
    """The receiver's RUN_STREAM: postcopy ended well, and the guest runs."""


class Sender(Enum):
    """States of the sending side; a value says what is done in it."""

    READ_BANNER = "wait for the receiver"
    WRITE_CONFIG = "send the configuration"
    READ_VERDICT = "wait for the receiver's verdict"
    RUN_STREAM = "send the guest"
    READ_READY = "wait until the receiver is ready"
    RENAME_AWAY = "rename the guest away"
    SAY_GO = "give the destination permission to start"
    READ_REPORT = "wait for the destination's report"
    SERVE_PAGES = "wait until the last pages are there"
    READ_PERMISSION = "wait for permission to have the guest back"
    RENAME_BACK = "give the guest its name back"
    RESUME = "resume the guest"
    SETTLE = "see that a late suspend does not leave the guest suspended"
    RENAME_INCONSISTENT = "rename the inconsistent guest"
    READ_SYNC = "wait for the end of postcopy"
    LOOK_FOR_SYNC = "see whether the destination has the guest all the same"
    DESTROY = "destroy the source"

    SUCCESS = "success"
    RUNNING_AT_SOURCE = "running-at-source"
    POSTCOPY_FAILED = "postcopy-failed"
    UNDEFINED = "undefined"
    GUEST_DIED = "guest-died"


class Receiver(Enum):
    """States of the receiving side."""

    SAY_BANNER = "send the banner"
    READ_CONFIG = "read the configuration"
    EXAMINE = "see whether the guest can come"
    ACCEPT = "accept the guest"
    REFUSE = "refuse the guest"
    RUN_STREAM = "receive the guest"
    SAY_READY = "say ready"
    READ_GO = "wait for permission to start"
    RENAME = "give the guest its name"
    UNPAUSE = "start the guest"
    REPORT_STARTED = "report the start"
    REPORT_FAILED = "report the failure"
    DESTROY_TO_GIVE_BACK = "destroy our copy, to give the guest back"
    ALLOW_BACK = "permit the sender to have the guest back"
    DESTROY = "destroy our copy"
    RENAME_RESUMED = "give the resumed guest its name"
    SAY_SYNC = "tell the end of postcopy"

    STARTED = "started"
    NOT_STARTED = "not-started"


SENDER_ENDS: Final = frozenset(
    {
        Sender.SUCCESS,
        Sender.RUNNING_AT_SOURCE,
        Sender.POSTCOPY_FAILED,
        Sender.UNDEFINED,
        Sender.GUEST_DIED,
    }
)
RECEIVER_ENDS: Final = frozenset({Receiver.STARTED, Receiver.NOT_STARTED})

SENDER_INTERRUPTIBLE: Final = frozenset(
    {
        Sender.READ_BANNER,
        Sender.WRITE_CONFIG,
        Sender.READ_VERDICT,
        Sender.RUN_STREAM,
        Sender.READ_READY,
        Sender.SERVE_PAGES,
    }
)
"""The states in which the user can abort; in SERVE_PAGES only our waiting ends. Elsewhere the
handshake runs to its end, within its limits:
stopping it would only turn a known state into an undefined one."""
RECEIVER_INTERRUPTIBLE: Final = frozenset(
    {
        Receiver.SAY_BANNER,
        Receiver.READ_CONFIG,
        Receiver.EXAMINE,
        Receiver.ACCEPT,
        Receiver.REFUSE,
        Receiver.RUN_STREAM,
        Receiver.SAY_READY,
        Receiver.READ_GO,
    }
)
"""Likewise: until the guest is ours to start. In RUN_STREAM the first request to abort after a
postcopy resumption only warns, on both sides (`xl.conduct`)."""

_S, _R, _E = Sender, Receiver, Event

# fmt: off
SENDER_TABLE: Final[dict[tuple[Sender, Event], Sender]] = {
    (_S.READ_BANNER, _E.OK): _S.WRITE_CONFIG,
    (_S.READ_BANNER, _E.FAILED): _S.RUNNING_AT_SOURCE,
    (_S.WRITE_CONFIG, _E.OK): _S.READ_VERDICT,
    (_S.WRITE_CONFIG, _E.FAILED): _S.RUNNING_AT_SOURCE,
    (_S.READ_VERDICT, _E.OK): _S.RUN_STREAM,
    (_S.READ_VERDICT, _E.FAILED): _S.RUNNING_AT_SOURCE,

    (_S.RUN_STREAM, _E.OK): _S.READ_READY,
    (_S.RUN_STREAM, _E.TRANSITIONED): _S.READ_SYNC,
    (_S.RUN_STREAM, _E.NEVER_SUSPENDED): _S.SETTLE,
    (_S.RUN_STREAM, _E.FAILED): _S.RESUME,
    (_S.RUN_STREAM, _E.FAILED_AFTER_TRANSITION): _S.LOOK_FOR_SYNC,
    (_S.RUN_STREAM, _E.GUEST_DIED): _S.GUEST_DIED,

    (_S.READ_READY, _E.OK): _S.RENAME_AWAY,
    (_S.READ_READY, _E.FAILED): _S.RESUME,
    (_S.RENAME_AWAY, _E.OK): _S.SAY_GO,
    (_S.RENAME_AWAY, _E.FAILED): _S.RENAME_BACK,
    # Once GO has been attempted, the destination may run the guest.
    (_S.SAY_GO, _E.OK): _S.READ_REPORT,
    (_S.SAY_GO, _E.FAILED): _S.UNDEFINED,
    (_S.READ_REPORT, _E.OK): _S.DESTROY,
    (_S.READ_REPORT, _E.PAGES_LEFT): _S.SERVE_PAGES,
    (_S.READ_REPORT, _E.NOT_STARTED): _S.READ_PERMISSION,
    (_S.READ_REPORT, _E.FAILED): _S.UNDEFINED,
    (_S.READ_PERMISSION, _E.OK): _S.RENAME_BACK,
    (_S.READ_PERMISSION, _E.FAILED): _S.UNDEFINED,

    (_S.RENAME_BACK, _E.OK): _S.RESUME,
    (_S.RENAME_BACK, _E.FAILED): _S.RESUME,
    (_S.RESUME, _E.OK): _S.RUNNING_AT_SOURCE,
    (_S.RESUME, _E.GUEST_DIED): _S.GUEST_DIED,
    (_S.RESUME, _E.FAILED): _S.UNDEFINED,
    (_S.SETTLE, _E.OK): _S.RUNNING_AT_SOURCE,
    (_S.SETTLE, _E.GUEST_DIED): _S.GUEST_DIED,
    (_S.SETTLE, _E.FAILED): _S.UNDEFINED,

    (_S.RENAME_INCONSISTENT, _E.OK): _S.POSTCOPY_FAILED,
    (_S.RENAME_INCONSISTENT, _E.FAILED): _S.POSTCOPY_FAILED,
    (_S.READ_SYNC, _E.OK): _S.DESTROY,
    (_S.READ_SYNC, _E.FAILED): _S.RENAME_INCONSISTENT,
    # The destination's report counts, whatever went wrong here.
    (_S.LOOK_FOR_SYNC, _E.OK): _S.DESTROY,
    (_S.LOOK_FOR_SYNC, _E.FAILED): _S.RENAME_INCONSISTENT,
    # The domain holds the pages until they are there; its page server goes on without us.
    (_S.SERVE_PAGES, _E.OK): _S.DESTROY,
    (_S.SERVE_PAGES, _E.NOT_AWAITED): _S.SUCCESS,
    (_S.SERVE_PAGES, _E.FAILED): _S.RENAME_INCONSISTENT,
    # The guest runs there; `recover` removes what is left here, by the journal.
    (_S.DESTROY, _E.OK): _S.SUCCESS,
    (_S.DESTROY, _E.FAILED): _S.SUCCESS,
}

RECEIVER_TABLE: Final[dict[tuple[Receiver, Event], Receiver]] = {
    (_R.SAY_BANNER, _E.OK): _R.READ_CONFIG,
    (_R.SAY_BANNER, _E.FAILED): _R.NOT_STARTED,
    (_R.READ_CONFIG, _E.OK): _R.EXAMINE,
    (_R.READ_CONFIG, _E.FAILED): _R.NOT_STARTED,
    (_R.EXAMINE, _E.OK): _R.ACCEPT,
    (_R.EXAMINE, _E.FAILED): _R.REFUSE,
    (_R.ACCEPT, _E.OK): _R.RUN_STREAM,
    (_R.ACCEPT, _E.FAILED): _R.NOT_STARTED,
    (_R.REFUSE, _E.OK): _R.NOT_STARTED,
    (_R.REFUSE, _E.FAILED): _R.NOT_STARTED,

    (_R.RUN_STREAM, _E.OK): _R.SAY_READY,
    (_R.RUN_STREAM, _E.RESUMED): _R.RENAME_RESUMED,
    (_R.RUN_STREAM, _E.FAILED): _R.DESTROY,

    (_R.SAY_READY, _E.OK): _R.READ_GO,
    (_R.SAY_READY, _E.FAILED): _R.DESTROY,
    (_R.READ_GO, _E.OK): _R.RENAME,
    (_R.READ_GO, _E.FAILED): _R.REPORT_FAILED,
    (_R.RENAME, _E.OK): _R.UNPAUSE,
    (_R.RENAME, _E.FAILED): _R.REPORT_FAILED,
    (_R.UNPAUSE, _E.OK): _R.REPORT_STARTED,
    (_R.UNPAUSE, _E.FAILED): _R.REPORT_FAILED,
    (_R.REPORT_STARTED, _E.OK): _R.STARTED,
    (_R.REPORT_STARTED, _E.FAILED): _R.STARTED,

    (_R.REPORT_FAILED, _E.OK): _R.DESTROY_TO_GIVE_BACK,
    (_R.REPORT_FAILED, _E.FAILED): _R.DESTROY,
    (_R.DESTROY_TO_GIVE_BACK, _E.OK): _R.ALLOW_BACK,
    # A copy that could not be destroyed might still run: no permission.
    (_R.DESTROY_TO_GIVE_BACK, _E.FAILED): _R.NOT_STARTED,
    (_R.ALLOW_BACK, _E.OK): _R.NOT_STARTED,
    (_R.ALLOW_BACK, _E.FAILED): _R.NOT_STARTED,
    (_R.DESTROY, _E.OK): _R.NOT_STARTED,
    (_R.DESTROY, _E.FAILED): _R.NOT_STARTED,

    (_R.RENAME_RESUMED, _E.OK): _R.SAY_SYNC,
    (_R.RENAME_RESUMED, _E.FAILED): _R.SAY_SYNC,
    (_R.SAY_SYNC, _E.OK): _R.STARTED,
    (_R.SAY_SYNC, _E.FAILED): _R.STARTED,
}
# fmt: on

State = TypeVar("State", bound=Enum)


class Handshake(Generic[State]):
    """One run through a table. `state` is the action to carry out next, or an end."""

    def __init__(
        self, table: dict[tuple[State, Event], State], start: State, ends: frozenset[State]
    ) -> None:
        self._table = table
        self._ends = ends
        self.state: State = start

    @property
    def ended(self) -> bool:
        return self.state in self._ends

    def step(self, event: Event) -> State:
        """Return the action that follows. Raises ValueError if the current one cannot end so."""
        try:
            self.state = self._table[self.state, event]
        except KeyError:
            raise ValueError(f"{event} cannot follow {self.state}") from None
        return self.state


def sender() -> Handshake[Sender]:
    return Handshake(SENDER_TABLE, Sender.READ_BANNER, SENDER_ENDS)


def receiver() -> Handshake[Receiver]:
    return Handshake(RECEIVER_TABLE, Receiver.SAY_BANNER, RECEIVER_ENDS)
