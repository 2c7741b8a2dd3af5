"""Settle a guest after a failure: it runs, will not suspend later, and is not in log-dirty mode."""

from __future__ import annotations

import contextlib
import errno
import time
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.channel.waits import Patience
from xen_save_helper.toolstack.rules.cause import message_of

if TYPE_CHECKING:
    from xen_save_helper.toolstack.hosts.interface import DomainSummary, Host

POLL: Final = 0.02

DEAD: Final = frozenset({"crashed", "shut down"})
"""States of a guest that cannot be resumed."""


class GuestStateError(OSError):
    """The guest cannot suspend in its state, which is `state`."""

    def __init__(self, text: str, state: str) -> None:
        super().__init__(text)
        self.state = state


def why_not_suspend(row: DomainSummary) -> str:
    """Why a domain cannot suspend in its state, with the way out; "" if it can.

    xl sends all of a paused guest's memory, then waits for a suspension that cannot come, since its
    vCPUs do not run.
    """
    match row.state.value:
        case "paused":
            return f"{row.name!r} is paused, and cannot suspend: unpause it first"
        case "suspended":
            return f"{row.name!r} is already suspended: see `xen-toolstack recover {row.name}`"
        case "crashed":
            return f"{row.name!r} has crashed: examine it, then destroy it"
        case "shut down":
            return f"{row.name!r} is shut down: destroy it, or start it again"
    return ""


def check_can_suspend(host: Host, domid: int) -> None:
    """Raise GuestStateError if the guest cannot suspend, ProcessLookupError if there is none."""
    row = row_of_domain(host, domid)
    if problem := why_not_suspend(row):
        raise GuestStateError(problem, row.state.value)


def state_of(host: Host, domid: int) -> str | None:
    """`running`, `paused`, `suspended`, `crashed` or `shut down`; None if the domain is gone."""
    try:
        return host.summary(domid).state.value
    except ProcessLookupError:
        return None


def how_guest_ended(state: str | None) -> str:
    """What became of a guest in one of `DEAD`, or whose domain is gone (None), as a clause."""
    match state:
        case None:
            return "the guest was destroyed"
        case "shut down":
            return "the guest has shut itself down"
    return "the guest has crashed"


def row_of_domain(host: Host, domid: int) -> DomainSummary:
    """The summary of a domain. Raises ProcessLookupError if there is no such domain."""
    try:
        return host.summary(domid)
    except ProcessLookupError as error:
        raise ProcessLookupError(errno.ESRCH, why_not_listed(host, domid)) from error


def why_not_listed(host: Host, domid: int) -> str:
    """Why a host does not list a domain. Xen keeps one that is being destroyed for as long as
    somebody maps its pages."""
    with contextlib.suppress(OSError), contextlib.closing(host.domain(domid)) as domain:
        if domain.getinfo().dying:
            return f"domain {domid} is being destroyed"
    return f"there is no domain {domid}"


def heal(host: Host, domid: int) -> str:
    """Turn off the log-dirty mode that a dead helper left on, the domain's and its device model's.

    Returns what went wrong, "" if nothing did: the mode only costs the guest time, so the guest
    shall run on all the same. Raises ProcessLookupError if the guest is gone.
    """

    def off() -> None:
        domain = host.domain(domid)
        try:
            domain.logdirty_off()
        finally:
            domain.close()

    problems = []
    for step in (off, lambda: host.switch_qemu_logdirty(domid, False)):
        try:
            step()
        except ProcessLookupError:
            raise
        except OSError as error:
            problems.append(f"log-dirty mode cannot be turned off: {message_of(error)}")
    return "; ".join(problems)


def resume_for_sure(host: Host, domid: int, *, watch: float = 0.0) -> str:
    """Resume a guest that has suspended, and withdraw a suspend request that is still pending.

    A guest that has acknowledged a request cannot be stopped from suspending; if that may be so, it
    is watched for `watch` seconds, and resumed once it has. Returns its state then: `running`,
    `paused`, or one of `DEAD`. Raises ProcessLookupError if it is gone, TimeoutError if its process
    does not answer, and OSError (EIO) if it is still suspended after being resumed.
    """
    if state_of(host, domid) in {"running", "paused"}:
        host.resume(domid)
    patience, over = Patience(watch, time.monotonic()), not watch
    while (state := state_of(host, domid)) in {"running", "paused"} and not over:
        time.sleep(POLL)
        over = patience.look(time.monotonic())
    if state == "suspended":
        host.resume(domid)
        state = state_of(host, domid)
    if state is None:
        raise ProcessLookupError(errno.ESRCH, f"domain {domid} is gone")
    if state == "suspended":
        raise OSError(errno.EIO, f"domain {domid} is still suspended, though it was resumed")
    return state
