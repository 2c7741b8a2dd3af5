"""Bring a guest to rest after a failure: it runs, will not suspend later, and is not log-dirty."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from toolstack.failure import message_of

if TYPE_CHECKING:
    from helper.hypervisors.interface import Host

POLL: Final = 0.02

DEAD: Final = frozenset({"crashed", "shut down"})
"""States of a guest that no resumption leads out of."""


def state_of(host: Host, domid: int) -> str | None:
    """`running`, `paused`, `suspended`, `crashed` or `shut down`; None where the domain is gone."""
    return next((row.state.value for row in host.domains() if row.domid == domid), None)


def name_of_domain(host: Host, domid: int) -> str:
    """Raises ProcessLookupError where there is no such domain."""
    name = next((row.name for row in host.domains() if row.domid == domid), None)
    if name is None:
        raise ProcessLookupError(errno.ESRCH, f"there is no domain {domid}")
    return name


def heal(host: Host, domid: int) -> str:
    """Turn off log-dirty mode, of the domain and of its device model, that a dead helper left.

    Returns what went wrong, empty where nothing did: that mode only costs the guest time, so it is
    to run on all the same. Raises ProcessLookupError where it is gone.
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
    """Resume a guest that has suspended, and take back a request to suspend that still stands.

    A guest that has acknowledged a request cannot be stopped from suspending: where that may be,
    it is watched for `watch` seconds, and resumed when it has. Returns its state then: `running`,
    `paused`, or one of `DEAD`. Raises ProcessLookupError where it is gone, TimeoutError where its
    process does not answer, OSError (EIO) where it is suspended after a resumption, too.
    """
    if state_of(host, domid) in {"running", "paused"}:
        host.resume(domid)
    end = time.monotonic() + watch
    while (state := state_of(host, domid)) in {"running", "paused"} and time.monotonic() < end:
        time.sleep(POLL)
    if state == "suspended":
        host.resume(domid)
        state = state_of(host, domid)
    if state is None:
        raise ProcessLookupError(errno.ESRCH, f"domain {domid} is gone")
    if state == "suspended":
        raise OSError(errno.EIO, f"domain {domid} is suspended still, though it was resumed")
    return state
