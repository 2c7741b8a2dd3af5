"""Bring a guest to rest after a failure: it runs, will not suspend later, and is not log-dirty."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from helper.hypervisors.interface import Host

SETTLE_LIMIT: Final = 10.0
"""Seconds for a guest that is about to suspend to get there, so that it can be resumed."""

POLL: Final = 0.02


def state_of(host: Host, domid: int) -> str | None:
    """`running`, `paused`, `suspended` or `crashed`; None where the domain is gone."""
    return next((row.state.value for row in host.domains() if row.domid == domid), None)


def heal(host: Host, domid: int) -> None:
    """Turn off log-dirty mode, of the domain and of its device model, that a dead helper left."""
    domain = host.domain(domid)
    try:
        domain.logdirty_off()
    finally:
        domain.close()
    host.switch_qemu_logdirty(domid, False)


def resume_for_sure(host: Host, domid: int, *, may_suspend: bool) -> str:
    """Resume a guest that has suspended; where it `may_suspend` yet, see that it does not stay so.

    Returns its state then: `running`, `paused`, or `crashed`. Raises TimeoutError where it does
    not come to rest within SETTLE_LIMIT, ProcessLookupError where it is gone.
    """
    end = time.monotonic() + SETTLE_LIMIT
    while True:
        state = state_of(host, domid)
        if state is None:
            raise ProcessLookupError(f"domain {domid} is gone")
        if state == "suspended":
            host.resume(domid)
            may_suspend = False
        elif state == "crashed" or not may_suspend:
            return state
        else:
            may_suspend = not _withdraw(host, domid)
        if time.monotonic() > end:
            raise TimeoutError(f"domain {domid} neither suspends nor runs on; it is {state}")
        time.sleep(POLL)


def _withdraw(host: Host, domid: int) -> bool:
    """Take back whatever request stands: a request is one for all, so a new one is it, too."""
    request = host.suspend_request(domid)
    try:
        return request.withdraw()
    finally:
        request.close()
