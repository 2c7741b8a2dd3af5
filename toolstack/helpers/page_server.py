"""The page server of a domain whose guest runs elsewhere, and still lacks pages there.

The domain holds them until they are there: whoever destroys it before loses the guest.
"""

from __future__ import annotations

import os
from pathlib import Path

from xen_save_helper.ipc_schema.control import Identity, Role
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError


def why_not_sent(directory: Path, domid: int) -> str:
    """Why the pages of a domain are not at the destination, or not yet; "" if they are."""
    server = _page_server(directory, domid)
    if server is None:
        return ""
    try:
        status = control.status(directory, server)
    except EndedError as error:
        return f"{error.lost}, so they are lost to the destination" if error.lost else ""
    trouble = f" ({status.trouble})" if status.trouble else ""
    return (
        f"{status.pages_left} of them are still to be sent{trouble}; `xen-toolstack postcopy wait "
        f"{status.domain}` waits for that"
    )


def forget(directory: Path, domid: int) -> None:
    """Remove what a page server has left behind that has lost the pages of this domain. One that
    works goes on."""
    _forget(directory, Role.PAGE_SERVER, domid)


def forget_pager(directory: Path, domid: int) -> None:
    """Remove what a pager has left behind that has failed, and whose domain is destroyed."""
    _forget(directory, Role.PAGER, domid)


def _forget(directory: Path, role: Role, domid: int) -> None:
    process = _process(directory, role, domid)
    if process is not None and (process.ended or not os.path.exists(f"/proc/{process.pid}")):
        control.forget(directory, process)


def _page_server(directory: Path, domid: int) -> Identity | None:
    return _process(directory, Role.PAGE_SERVER, domid)


def _process(directory: Path, role: Role, domid: int) -> Identity | None:
    for process in control.processes(directory):
        if process.role is role and process.domid == domid:
            return process
    return None
