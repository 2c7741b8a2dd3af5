"""Finishes what a dead controller left in the middle, by what it had promised, never by guesswork.

`REMEDIES` says what is right for each role and promise; the state of the domain only narrows it. A
guest that may run elsewhere is never resumed here: `recover` then says what to look at, and a
person who has looked can choose `PersonsChoice.RESUME` or `PersonsChoice.DESTROY`.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers import control, page_server
from xen_save_helper.toolstack.helpers.endpoint import sweep_endpoints
from xen_save_helper.toolstack.operations.domain_lock import domain_lock
from xen_save_helper.toolstack.operations.settle import DEAD, heal, resume_for_sure
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import INCOMING, MIGRATED_AWAY, POSTCOPY_INCONSISTENT
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import JournalEntry, JournalError, Promise, Role

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

VERIFY_LIMIT: Final = 60.0
"""Seconds for a guest resumed by postcopy to compare all its memory."""

LATE_SUSPEND: Final = 0.5
"""Seconds to wait for a guest to suspend on a dead controller's request. One that takes longer
suspends after all, and has to be resumed by another `recover`."""


class Remedy(Enum):
    """How `recover` ends an operation."""

    RESUME = "resume"
    """Nothing was promised: let the guest run on here, under its name, log-dirty mode off."""
    DESTROY = "destroy"
    """Destroy what is here: it is partial, or no longer the guest."""
    START = "start"
    """The sender has let go: give it its name and start it."""
    FINISH = "finish"
    """The guest runs: give it its name."""
    FINISH_IF_WHOLE = "finish if whole"
    """The guest may have run with part of its memory: keep it only if it can compare all of it."""
    DESTROY_IF_SENT = "destroy if sent"
    """The guest runs at the other side: destroy what is here once its last pages are there."""
    REFUSE = "refuse"
    """The guest may run at the other side: leave the choice to a person."""
    FORGET = "forget"
    """Only remove the journal: nothing else is left to do here."""


REMEDIES: Final = {
    (Role.SOURCE, Promise.BEGUN): Remedy.RESUME,
    (Role.SOURCE, Promise.GO): Remedy.REFUSE,
    (Role.SOURCE, Promise.TRANSITION): Remedy.REFUSE,
    (Role.SOURCE, Promise.PAGES): Remedy.DESTROY_IF_SENT,
    (Role.SOURCE, Promise.DONE): Remedy.DESTROY,
    (Role.DESTINATION, Promise.RECEIVING): Remedy.DESTROY,
    (Role.DESTINATION, Promise.GO_RECEIVED): Remedy.START,
    (Role.DESTINATION, Promise.RESUMED): Remedy.FINISH_IF_WHOLE,
    (Role.DESTINATION, Promise.STARTED): Remedy.FINISH,
    (Role.SAVE, Promise.BEGUN): Remedy.RESUME,
    (Role.SAVE, Promise.DONE): Remedy.DESTROY,
    (Role.RESTORE, Promise.RECEIVING): Remedy.DESTROY,
    (Role.RESTORE, Promise.GO_RECEIVED): Remedy.START,
    (Role.RESTORE, Promise.STARTED): Remedy.FINISH,
}


_UNCERTAIN: Final = frozenset({Remedy.REFUSE, Remedy.DESTROY_IF_SENT})
"""Remedies that change nothing, until a person chooses."""

OPERATIONS: Final = {
    Role.SOURCE: "migration",
    Role.DESTINATION: "migration",
    Role.SAVE: "save",
    Role.RESTORE: "restore",
}
"""Each role's operation, for people."""


_LEFT: Final = {
    (Role.SOURCE, Promise.BEGUN): "its migration was left in the middle",
    (Role.SOURCE, Promise.PAGES): "it runs at {entry.peer}, and its last pages are sent from here",
    (Role.SOURCE, Promise.DONE): "it runs at {entry.peer}; what is left here goes",
    (Role.DESTINATION, Promise.RECEIVING): "only partly received",
    (Role.DESTINATION, Promise.GO_RECEIVED): "received whole, but not started yet",
    (Role.DESTINATION, Promise.RESUMED): "it may have run with part of its memory",
    (Role.DESTINATION, Promise.STARTED): "it was received and started; its name is {entry.name!r}",
    (Role.SAVE, Promise.BEGUN): "its save was left in the middle",
    (Role.SAVE, Promise.DONE): "it is whole in {entry.peer}; what is left here goes",
    (Role.RESTORE, Promise.RECEIVING): "only partly restored",
    (Role.RESTORE, Promise.GO_RECEIVED): "restored whole, but not started yet",
    (Role.RESTORE, Promise.STARTED): "it was restored; its name is {entry.name!r}",
}
"""What an operation whose process has ended left behind, for people; `waits_for` has a text of its
own for those that `REMEDIES` refuses."""


class PersonsChoice(Enum):
    """What a person may choose if `recover` refuses."""

    RESUME = "resume"
    DESTROY = "destroy"


@dataclass(frozen=True)
class Recovery:
    """What became of one journal entry, or of a suspended guest without one (`role` and `promise`
    are None). `remedy` was carried out; `done` is False if it was refused or the guest is lost;
    `text` is a line for people."""

    name: str
    role: Role | None
    promise: Promise | None
    remedy: Remedy
    done: bool
    text: str


def decide(role: Role, promise: Promise, state: str | None) -> Remedy:
    """The right remedy for an operation; `state` is the domain's, as `settle.state_of` gives it."""
    remedy = REMEDIES[role, promise]
    if state is None:
        return Remedy.FORGET
    if remedy in _UNCERTAIN and state == "running":
        return Remedy.FORGET  # a person has resumed it since
    if (role, promise, state) == (Role.SAVE, Promise.DONE, "running"):
        return Remedy.FORGET  # its controller has resumed it, but could not take the promise back
    if state in DEAD and remedy in {Remedy.RESUME, Remedy.START, Remedy.FINISH}:
        return Remedy.FORGET
    return remedy


def domain_of(host: Host, entry: JournalEntry) -> DomainSummary | None:
    """The domain that a journal is about, None if it is gone. A name alone proves nothing: a person
    may have given it to another guest.

    The sending roles know the domid; the receiving ones know the name of the copy that they made,
    which keeps it until it is given the guest's own.
    """
    rows = [row for row in host.domains() if entry.may_be(row.uuid)]
    if entry.role in {Role.SOURCE, Role.SAVE}:
        for row in rows:
            known = entry.uuid is not None and entry.uuid == row.uuid
            # Xen reuses domids in the end.
            if row.domid == entry.domid and (known or row.name in _names(entry)):
                return row
        return None
    return next((row for name in entry.copy_names for row in rows if row.name == name), None)


def _names(entry: JournalEntry) -> tuple[str, ...]:
    """The names that the operation may have given its domain."""
    if entry.role in {Role.SOURCE, Role.SAVE}:
        suffixes = MIGRATED_AWAY, POSTCOPY_INCONSISTENT
        return (entry.name, *(entry.name + suffix for suffix in suffixes))
    return (entry.name, entry.domain_name)


def operations_on(host: Host, row: DomainSummary) -> list[JournalEntry]:
    """The journals that are about this domain: usually none or one."""
    found = []
    for entry in journal.entries(host.state_dir):
        domain = domain_of(host, entry)
        if domain is not None and domain.domid == row.domid:
            found.append(entry)
    return found


def waits_for(entry: JournalEntry) -> str:
    """What a guest with this journal waits for, as `list` shows it."""
    if entry.process.alive():
        return (
            f"its {OPERATIONS[entry.role]} to end (process {entry.process.pid}, "
            f"{entry.promise.value})"
        )
    if REMEDIES[entry.role, entry.promise] is Remedy.REFUSE:
        return f"a person: it may run at {entry.peer}; see `recover {entry.name}`"
    return f"`recover {entry.name}` ({_LEFT[entry.role, entry.promise].format(entry=entry)})"


def recover(
    host: Host, name: str, choice: PersonsChoice | None = None, *, role: Role | None = None
) -> list[Recovery]:
    """Finish every operation on guest `name`, or those of one `role`, whose controller is dead;
    `name` is the guest's or its domain's. Returns an empty list if there were none. A guest that is
    suspended without a journal is resumed only by `choice`.

    Raises JournalError if a controller is still alive or a journal cannot be read, OSError if the
    host cannot do what is needed (the journal then stays).
    """
    journal.sweep(host.state_dir)
    host.clear_up()
    sweep_endpoints()
    with suppress(OSError, ValueError):  # a file of others there is no reason to stop
        control.operations(host.control_dir)
    found = _found(host, name)
    if role is not None:
        found = [entry for entry in found if entry.role is role]
    for entry in found:
        if entry.process.alive():
            raise JournalError(
                f"guest {entry.name!r}: process {entry.process.pid} is still at work on it "
                f"({entry.role.value}); wait for it to end, or end it with SIGTERM (SIGKILL if it "
                "does not move)"
            )
    # The receiving end first: if both are on this host, it frees the name for the sending one.
    found.sort(key=lambda entry: entry.role is not Role.DESTINATION)
    if found or role is not None:
        return [_recover(host, entry, choice) for entry in found]
    row = next((row for row in host.domains() if row.name == name), None)
    if row is None or row.state.value != "suspended":
        return []
    with _alone(host, row.domid):
        return [_recover_unexplained(host, row, choice)]


def _found(host: Host, name: str) -> list[JournalEntry]:
    """The journals whose guest, or whose domain, has this name."""
    standing = journal.entries(host.state_dir)
    found = []
    for entry in standing:
        row = domain_of(host, entry)
        if entry.name == name or (row is not None and row.name == name):
            found.append(entry)
    if found or any(row.name == name for row in host.domains()):
        return found
    return [entry for entry in standing if name in _names(entry)]


def _recover_unexplained(host: Host, row: DomainSummary, choice: PersonsChoice | None) -> Recovery:
    """Deal with a guest that suspended for another toolstack, or after an earlier `recover`."""
    remedy, done = Remedy.REFUSE, False
    text = (
        f"{row.name!r} is suspended, and no journal here says why. If it runs nowhere else and "
        f"nobody is saving it: `recover {row.name} --resume`"
    )
    if choice is PersonsChoice.RESUME:
        heal(host, row.domid)
        remedy, done = Remedy.RESUME, True
        text = f"{row.name!r} is {resume_for_sure(host, row.domid)} here"
    elif choice is PersonsChoice.DESTROY:
        host.destroy(row.domid)
        remedy, done, text = (
            Remedy.DESTROY,
            True,
            f"{row.name!r} was given up by a person: destroyed",
        )
    return Recovery(row.name, None, None, remedy, done, text)


def _recover(host: Host, entry: JournalEntry, choice: PersonsChoice | None) -> Recovery:
    with journal.taken_over(host.state_dir, entry), _alone(host, entry.domid):
        return _end(host, entry, choice)


def _alone(host: Host, domid: int | None) -> AbstractContextManager[None]:
    """Keep other operations off the domain, those without a journal included. Raises
    DomainBusyError."""
    if domid is None:
        return nullcontext()
    return domain_lock(host.state_dir, domid, "recover")


def _end(host: Host, entry: JournalEntry, choice: PersonsChoice | None) -> Recovery:
    row = domain_of(host, entry)
    remedy = decide(entry.role, entry.promise, row.state.value if row else None)
    if remedy is Remedy.DESTROY_IF_SENT and not _not_sent(host, entry):
        remedy = Remedy.DESTROY
    if remedy in _UNCERTAIN and choice is not None:
        remedy = Remedy.RESUME if choice is PersonsChoice.RESUME else Remedy.DESTROY
    done, text = _carry_out(host, entry, row, remedy)
    if remedy not in _UNCERTAIN:
        if entry.partial is not None:
            Path(entry.partial).unlink(missing_ok=True)
        if entry.role is Role.SOURCE and entry.domid is not None:
            page_server.forget(host.control_dir, entry.domid)
        if entry.role is Role.DESTINATION and row is not None and domain_of(host, entry) is None:
            page_server.forget_pager(host.control_dir, row.domid)
        journal.remove(host.state_dir, entry)
    return Recovery(entry.name, entry.role, entry.promise, remedy, done, text)


def _not_sent(host: Host, entry: JournalEntry) -> str:
    assert entry.domid is not None, "the source knows its domain"
    return page_server.why_not_sent(host.control_dir, entry.domid)


def _carry_out(
    host: Host, entry: JournalEntry, row: DomainSummary | None, remedy: Remedy
) -> tuple[bool, str]:
    """Returns whether the guest is where it should be, and a line for people."""
    if row is None:
        operation = OPERATIONS[entry.role]
        return True, f"no domain is left here from the {operation} of {entry.name!r}"
    match remedy:
        case Remedy.FORGET if row.state.value in DEAD:
            return False, f"{row.name!r} {_dead(row.state.value)}, then `destroy {row.name}`"
        case Remedy.FORGET if entry.role is Role.SAVE:
            return True, f"{row.name!r} runs here; {entry.peer} holds it as it was when saved"
        case Remedy.FORGET:
            return True, (
                f"{row.name!r} runs here already; make sure that it does not run at {entry.peer}"
            )
        case Remedy.RESUME:
            _rename(host, row, entry.name)
            problem = heal(host, row.domid)
            state = resume_for_sure(host, row.domid, watch=LATE_SUSPEND)
            if state in DEAD:
                return False, f"{entry.name!r} {_dead(state)}, then destroy it"
            return True, f"{entry.name!r} is {state} here{f'; {problem}' if problem else ''}"
        case Remedy.DESTROY:
            host.destroy(row.domid)
            return True, f"{row.name!r} was {_why_destroyed(entry)}: destroyed"
        case Remedy.START:
            _rename(host, row, entry.name)
            host.unpause(row.domid)
            return True, f"{entry.name!r} was received whole and let go by the source: started"
        case Remedy.FINISH:
            _rename(host, row, entry.name)
            return True, f"{entry.name!r} runs here"
        case Remedy.FINISH_IF_WHOLE:
            return _finish_if_whole(host, entry, row)
        case Remedy.DESTROY_IF_SENT:
            return False, (
                f"{row.name!r} runs at {entry.peer}, and its last pages are here: "
                f"{_not_sent(host, entry)}"
            )
        case Remedy.REFUSE:
            return False, _refusal(host, entry, row)


def _finish_if_whole(host: Host, entry: JournalEntry, row: DomainSummary) -> tuple[bool, str]:
    """Raises TimeoutError if the guest does not answer in time: it may be the only whole copy."""
    try:
        report = host.verify(row.domid, VERIFY_LIMIT)
        whole = report.memory_ok is True and report.crash is None
    except TimeoutError as error:
        raise TimeoutError(
            f"{row.name!r} has not compared its memory within {VERIFY_LIMIT:g} s ({error}): try "
            f"again, or give it up with `destroy {row.name}`"
        ) from error
    except (ConnectionError, ProcessLookupError):
        whole = False
    if whole:
        _rename(host, row, entry.name)
        # Its controller may have died between its promise and its act.
        host.unpause(row.domid)
        return True, f"{entry.name!r} has all its memory and runs here"
    host.destroy(row.domid)
    return True, (
        f"{row.name!r} had only part of its memory and could not run on: destroyed; a person must "
        f"decide about {entry.name + POSTCOPY_INCONSISTENT!r} at the source"
    )


def _dead(state: str) -> str:
    return f"{'has crashed' if state == 'crashed' else f'is {state}'}; look at it"


def _why_destroyed(entry: JournalEntry) -> str:
    if entry.promise is Promise.DONE:
        return "whole in its file" if entry.role is Role.SAVE else f"running at {entry.peer}"
    if entry.role in {Role.SOURCE, Role.SAVE}:
        return "given up by a person"
    return "only partly received"


def _refusal(host: Host, entry: JournalEntry, row: DomainSummary) -> str:
    name = row.name
    if entry.promise is Promise.TRANSITION:
        name = entry.name + POSTCOPY_INCONSISTENT
        _rename(host, row, name)
        said = "the postcopy transition has begun"
    else:
        said = "the destination may have been told to start it"
    problem = heal(host, row.domid) if row.state.value not in DEAD else ""
    look = (
        f"xen-toolstack list --host {entry.peer}"
        if os.path.isdir(entry.peer)
        else f"the host behind `{entry.peer}`"
    )
    return (
        f"{name!r} may run at {entry.peer} ({said}), so it is not resumed here. Look there for "
        f"{entry.name!r} or {entry.name + INCOMING!r} ({look}; `recover {entry.name}` there ends "
        f"what is in the middle). If it runs there: `recover {entry.name} --destroy` here; if "
        f"nothing of it is left there: `recover {entry.name} --resume` here"
        + (f"; {problem}" if problem else "")
    )


def _rename(host: Host, row: DomainSummary, name: str) -> None:
    """Raises FileExistsError, with the way out, if another guest has the name."""
    if row.name == name:
        return
    try:
        host.rename(row.domid, name)
    except FileExistsError as error:
        raise FileExistsError(
            f"{row.name!r} cannot have its name back, since there is another guest {name!r}: "
            f"destroy or rename one of them (`xen-toolstack rename {name} NEW`), then recover again"
        ) from error


def recover_copy(host: Host, name: str, trace: Trace) -> list[str]:
    """Finish what a killed receiver left of the guest `name`. Returns a line for people for each
    thing that cannot be finished."""
    warnings = []
    try:
        for recovery in recover(host, name, role=Role.DESTINATION):
            trace.event("recovered", way=recovery.remedy.value, text=recovery.text)
            if not recovery.done:
                warnings.append(f"destination: {recovery.text}")
    except OSError as error:
        warnings.append(f"destination: {message_of(error)}; run `recover {name}` there")
    return warnings
