"""The page server of a domain whose guest runs elsewhere, and still lacks pages there.

The domain holds them until they are there: whoever destroys it before loses the guest.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from xen_save_helper.ipc_schema.control import IDENTITY, Identity, Role, lives
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError


def why_not_sent(directory: Path, domid: int) -> str:
    """Why the pages of a domain are not at the destination, or not yet; "" if they are."""
    server = _process(directory, Role.PAGE_SERVER, domid)
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
    # What cannot be read is not ours. What cannot be removed changes nothing of what was done:
    # `postcopy list` shows it, and `postcopy abandon` removes it.
    with suppress(ValueError, OSError):
        process = _process(directory, role, domid)
        if process is not None and (process.ended or not lives(process.pid)):
            control.forget(directory, process)


def _process(directory: Path, role: Role, domid: int) -> Identity | None:
    """Raises OSError, ValueError for a file that has such a name and cannot be read."""
    for file in directory.glob(f"{role.value}-{domid}-*{IDENTITY}"):
        process = control.process_of(directory, file.stem)
        if process is not None and process.domid == domid:
            return process
    return None
