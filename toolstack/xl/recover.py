"""End what a dead controller left in the middle: by what it had promised, never by guesswork.

`WAYS` says for each role and promise what is right; the state of the domain only narrows it. A
guest that may run elsewhere is never resumed here: `recover` then says what to look at, and a
person who has looked can choose `WayOut.RESUME` or `WayOut.DESTROY`.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.trace import Trace
from xen_save_helper.toolstack.helpers.endpoint import sweep_endpoints
from xen_save_helper.toolstack.operations.domain_lock import domain_lock
from xen_save_helper.toolstack.operations.settle import DEAD, heal, resume_for_sure
from xen_save_helper.toolstack.rules.cause import message_of
from xen_save_helper.toolstack.rules.handshake import INCOMING, MIGRATED_AWAY, POSTCOPY_INCONSISTENT
from xen_save_helper.toolstack.xl import journal
from xen_save_helper.toolstack.xl.journal import Entry, JournalError, Promise, Role

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

VERIFY_LIMIT: Final = 60.0
"""Seconds that a guest resumed by postcopy has to compare all its memory."""

LATE_SUSPEND: Final = 0.5
"""Seconds for a guest to suspend on a request that a dead controller has left. A guest that
acknowledged it and takes longer suspends after all: `recover` then resumes it."""


class Way(Enum):
    """How an operation is ended."""

    RESUME = "resume"
    """Nothing was promised: the guest runs on here, under its name, log-dirty mode off."""
    DESTROY = "destroy"
    """What is here is partial, or no longer the guest."""
    START = "start"
    """The sender has let go: give it its name and start it."""
    FINISH = "finish"
    """It runs: give it its name."""
    FINISH_IF_WHOLE = "finish if whole"
    """It may have run with part of its memory: keep it only if it can compare all of it."""
    REFUSE = "refuse"
    """It may run at the other side."""
    FORGET = "forget"
    """Nothing is left to do here but to take the journal away."""


WAYS: Final = {
    (Role.SOURCE, Promise.BEGUN): Way.RESUME,
    (Role.SOURCE, Promise.GO): Way.REFUSE,
    (Role.SOURCE, Promise.TRANSITION): Way.REFUSE,
    (Role.SOURCE, Promise.DONE): Way.DESTROY,
    (Role.DESTINATION, Promise.RECEIVING): Way.DESTROY,
    (Role.DESTINATION, Promise.GO_RECEIVED): Way.START,
    (Role.DESTINATION, Promise.RESUMED): Way.FINISH_IF_WHOLE,
    (Role.DESTINATION, Promise.STARTED): Way.FINISH,
    (Role.SAVE, Promise.BEGUN): Way.RESUME,
    (Role.SAVE, Promise.DONE): Way.DESTROY,
    (Role.RESTORE, Promise.RECEIVING): Way.DESTROY,
    (Role.RESTORE, Promise.GO_RECEIVED): Way.START,
    (Role.RESTORE, Promise.STARTED): Way.FINISH,
}


OPERATIONS: Final = {
    Role.SOURCE: "migration",
    Role.DESTINATION: "migration",
    Role.SAVE: "save",
    Role.RESTORE: "restore",
}
"""What people call the operation of each role."""


_LEFT: Final = {
    (Role.SOURCE, Promise.BEGUN): "its migration was left in the middle",
    (Role.SOURCE, Promise.DONE): "it runs at {entry.peer}; what is left here goes",
    (Role.DESTINATION, Promise.RECEIVING): "only partly received",
    (Role.DESTINATION, Promise.GO_RECEIVED): "received whole, and not started yet",
    (Role.DESTINATION, Promise.RESUMED): "it may have run with part of its memory",
    (Role.DESTINATION, Promise.STARTED): "it was received and started; its name is {entry.name!r}",
    (Role.SAVE, Promise.BEGUN): "its save was left in the middle",
    (Role.SAVE, Promise.DONE): "it is whole in {entry.peer}; what is left here goes",
    (Role.RESTORE, Promise.RECEIVING): "only partly restored",
    (Role.RESTORE, Promise.GO_RECEIVED): "restored whole, and not started yet",
    (Role.RESTORE, Promise.STARTED): "it was restored; its name is {entry.name!r}",
}
"""What an operation whose process has ended has left, for people; of those that `WAYS` refuses,
`waits_for` says more."""


class WayOut(Enum):
    """What a person may choose where `recover` refuses."""

    RESUME = "resume"
    DESTROY = "destroy"


@dataclass(frozen=True)
class Recovery:
    """What became of one journal entry, or of a suspended guest without one (`role` and `promise`
    are None). `done` is False where it was refused or the guest is lost; `way` is what was carried
    out, `text` a line for people."""

    name: str
    role: Role | None
    promise: Promise | None
    way: Way
    done: bool
    text: str


def decide(role: Role, promise: Promise, state: str | None) -> Way:
    """The way to end an operation; `state` is the domain's, as `settle.state_of` gives it."""
    way = WAYS[role, promise]
    if state is None:
        return Way.FORGET
    if way is Way.REFUSE and state == "running":
        return Way.FORGET  # a person has resumed it since
    if (role, promise, state) == (Role.SAVE, Promise.DONE, "running"):
        return Way.FORGET  # its controller, which could not take the promise back, has resumed it
    if state in DEAD and way in {Way.RESUME, Way.START, Way.FINISH}:
        return Way.FORGET
    return way


def domain_of(host: Host, entry: Entry) -> DomainSummary | None:
    """The domain that a journal speaks of, None where it is gone. A name alone says nothing: a
    person may have given it to another guest.

    The sending roles know the domid; the receiving ones know the name of the copy they made, which
    it keeps until it is given the guest's own.
    """
    rows = [row for row in host.domains() if entry.may_be(row.uuid)]
    if entry.role in {Role.SOURCE, Role.SAVE}:
        for row in rows:
            known = entry.uuid is not None and entry.uuid == row.uuid
            # On Xen, a domid may come again after many others.
            if row.domid == entry.domid and (known or row.name in _names(entry)):
                return row
        return None
    return next((row for name in entry.copy_names for row in rows if row.name == name), None)


def _names(entry: Entry) -> tuple[str, ...]:
    """Every name that its operation may have given a domain of the journal."""
    if entry.role in {Role.SOURCE, Role.SAVE}:
        suffixes = MIGRATED_AWAY, POSTCOPY_INCONSISTENT
        return (entry.name, *(entry.name + suffix for suffix in suffixes))
    return (entry.name, entry.domain_name)


def operations_on(host: Host, row: DomainSummary) -> list[Entry]:
    """What the journals here say of this domain: mostly nothing, or one operation."""
    found = []
    for entry in journal.entries(host.state_dir):
        domain = domain_of(host, entry)
        if domain is not None and domain.domid == row.domid:
            found.append(entry)
    return found


def waits_for(entry: Entry) -> str:
    """What a guest with this journal waits for: the last column of `list`."""
    if entry.process.alive():
        return f"{entry.role.value} of process {entry.process.pid}, {entry.promise.value}"
    if WAYS[entry.role, entry.promise] is Way.REFUSE:
        return f"a person: may run at {entry.peer}; see `recover {entry.name}`"
    return f"`recover {entry.name}` ({_LEFT[entry.role, entry.promise].format(entry=entry)})"


def recover(
    host: Host, name: str, way_out: WayOut | None = None, *, role: Role | None = None
) -> list[Recovery]:
    """End all that was left in the middle for guest `name`, as a journal or its domain has it, or
    what one `role` of it left; empty where nothing was. A guest that is suspended without a journal
    is resumed only by `way_out`.

    Raises JournalError while a controller of it is alive, and for a journal that cannot be read;
    OSError where the host cannot do what is needed (the journal then stays).
    """
    journal.sweep(host.state_dir)
    host.clear_up()
    sweep_endpoints()
    found = _found(host, name)
    if role is not None:
        found = [entry for entry in found if entry.role is role]
    for entry in found:
        if entry.process.alive():
            raise JournalError(
                f"guest {entry.name!r}: process {entry.process.pid} is still at work on it "
                f"({entry.role.value}); wait for it, or end it with SIGTERM "
                "(SIGKILL where it stands still)"
            )
    # The receiving end first: with both on one host it frees the name for the sending one.
    found.sort(key=lambda entry: entry.role is not Role.DESTINATION)
    if found or role is not None:
        return [_recover(host, entry, way_out) for entry in found]
    row = next((row for row in host.domains() if row.name == name), None)
    if row is None or row.state.value != "suspended":
        return []
    with _alone(host, row.domid):
        return [_recover_unexplained(host, row, way_out)]


def _found(host: Host, name: str) -> list[Entry]:
    """The journals that are meant by a name: their guest's, or that of their domain."""
    standing = journal.entries(host.state_dir)
    found = []
    for entry in standing:
        row = domain_of(host, entry)
        if entry.name == name or (row is not None and row.name == name):
            found.append(entry)
    if found or any(row.name == name for row in host.domains()):
        return found
    return [entry for entry in standing if name in _names(entry)]


def _recover_unexplained(host: Host, row: DomainSummary, way_out: WayOut | None) -> Recovery:
    """A guest that suspended after `recover` had ended its operation, or for another toolstack."""
    way, done = Way.REFUSE, False
    text = (
        f"{row.name!r} is suspended, and no journal here says for what. If it runs nowhere else "
        f"and nobody is saving it: `recover {row.name} --resume`"
    )
    if way_out is WayOut.RESUME:
        heal(host, row.domid)
        way, done = Way.RESUME, True
        text = f"{row.name!r} is {resume_for_sure(host, row.domid)} here"
    elif way_out is WayOut.DESTROY:
        host.destroy(row.domid)
        way, done, text = Way.DESTROY, True, f"{row.name!r} was given up by a person: destroyed"
    return Recovery(row.name, None, None, way, done, text)


def _recover(host: Host, entry: Entry, way_out: WayOut | None) -> Recovery:
    with journal.taken_over(host.state_dir, entry), _alone(host, entry.domid):
        return _end(host, entry, way_out)


def _alone(host: Host, domid: int | None) -> AbstractContextManager[None]:
    """Nobody is at work on the domain, with a journal or without. Raises DomainBusyError."""
    if domid is None:
        return nullcontext()
    return domain_lock(host.state_dir, domid, "recover")


def _end(host: Host, entry: Entry, way_out: WayOut | None) -> Recovery:
    row = domain_of(host, entry)
    way = decide(entry.role, entry.promise, row.state.value if row else None)
    if way is Way.REFUSE and way_out is not None:
        way = Way.RESUME if way_out is WayOut.RESUME else Way.DESTROY
    done, text = _carry_out(host, entry, row, way)
    if way is not Way.REFUSE:
        if entry.partial is not None:
            Path(entry.partial).unlink(missing_ok=True)
        journal.remove(host.state_dir, entry)
    return Recovery(entry.name, entry.role, entry.promise, way, done, text)


def _carry_out(host: Host, entry: Entry, row: DomainSummary | None, way: Way) -> tuple[bool, str]:
    """Returns whether the guest is where it should be, and a line for people."""
    if row is None:
        return True, f"no domain of the {entry.role.value} is left here; nothing to do"
    match way:
        case Way.FORGET if row.state.value in DEAD:
            return False, f"{row.name!r} {_dead(row.state.value)}, then `destroy {row.name}`"
        case Way.FORGET if entry.role is Role.SAVE:
            return True, f"{row.name!r} runs here, and was saved into {entry.peer} as it was"
        case Way.FORGET:
            return True, (
                f"{row.name!r} runs here already; make sure that it does not run at {entry.peer}"
            )
        case Way.RESUME:
            _rename(host, row, entry.name)
            problem = heal(host, row.domid)
            state = resume_for_sure(host, row.domid, watch=LATE_SUSPEND)
            if state in DEAD:
                return False, f"{entry.name!r} {_dead(state)}, then destroy it"
            return True, f"{entry.name!r} is {state} here{f'; {problem}' if problem else ''}"
        case Way.DESTROY:
            host.destroy(row.domid)
            return True, f"{row.name!r} was {_why_destroyed(entry)}: destroyed"
        case Way.START:
            _rename(host, row, entry.name)
            host.unpause(row.domid)
            return True, f"{entry.name!r} was received whole and let go by the source: started"
        case Way.FINISH:
            _rename(host, row, entry.name)
            return True, f"{entry.name!r} runs here"
        case Way.FINISH_IF_WHOLE:
            return _finish_if_whole(host, entry, row)
        case Way.REFUSE:
            return False, _refusal(host, entry, row)


def _finish_if_whole(host: Host, entry: Entry, row: DomainSummary) -> tuple[bool, str]:
    """Raises TimeoutError where it cannot be told in time: it may be the only whole copy."""
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
        f"{row.name!r} had only part of its memory and could not run on: destroyed; at the source "
        f"it is {entry.name + POSTCOPY_INCONSISTENT!r}, for a person to decide"
    )


def _dead(state: str) -> str:
    return f"{'has crashed' if state == 'crashed' else f'is {state}'}; look at it"


def _why_destroyed(entry: Entry) -> str:
    if entry.promise is Promise.DONE:
        return "whole in its file" if entry.role is Role.SAVE else f"running at {entry.peer}"
    if entry.role in {Role.SOURCE, Role.SAVE}:
        return "given up by a person"
    return "only partly received"


def _refusal(host: Host, entry: Entry, row: DomainSummary) -> str:
    name = row.name
    if entry.promise is Promise.TRANSITION:
        name = entry.name + POSTCOPY_INCONSISTENT
        _rename(host, row, name)
        said = "the postcopy transition has begun"
    else:
        said = "GO has been said"
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
    """Raises FileExistsError with the way out where another guest has the name."""
    if row.name == name:
        return
    try:
        host.rename(row.domid, name)
    except FileExistsError as error:
        raise FileExistsError(
            f"{row.name!r} cannot have its name, since there is another guest {name!r}: destroy "
            f"or rename one of them (`xen-toolstack rename {name} NEW`), then recover again"
        ) from error


def recover_copy(host: Host, name: str, trace: Trace) -> list[str]:
    """What a killed receiver has left of the guest `name` is ended; a line for people for each
    thing that could not be."""
    warnings = []
    try:
        for recovery in recover(host, name, role=Role.DESTINATION):
            trace.event("recovered", way=recovery.way.value, text=recovery.text)
            if not recovery.done:
                warnings.append(f"destination: {recovery.text}")
    except OSError as error:
        warnings.append(f"destination: {message_of(error)}; run `recover {name}` there")
    return warnings
