"""The hypervisors that the engine and the toolstack work on, by URI."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from helper.hypervisors.interface import Domain, Host

SIMULATED = "sim:"


def open_host(uri: str) -> Host:
    """The host that `uri` names: `sim:DIRECTORY`.

    Raises OSError: ENOTSUP for a hypervisor that there is not, NotADirectoryError or
    FileNotFoundError for a directory that is no host.
    """
    if not uri.startswith(SIMULATED):
        raise OSError(
            errno.ENOTSUP, f"hypervisor {uri!r} is not supported; use {SIMULATED}DIRECTORY"
        )
    from helper.hypervisors.simulated.host import SimulatedHost

    return SimulatedHost(uri.removeprefix(SIMULATED))


def open_domain(uri: str, domid: int) -> Domain:
    """Domain `domid` of the host that `uri` names; raises ProcessLookupError besides."""
    return open_host(uri).domain(domid)
