"""Waits for a guest's last pages, which a page server still sends to where the guest runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.control import PostcopyStatus, lives
from xen_save_helper.toolstack.helpers import control
from xen_save_helper.toolstack.helpers.control import EndedError

if TYPE_CHECKING:
    from xen_save_helper.toolstack.context import ProgressLine

_LOOK_SECONDS: Final = 1.0


class PagesLostError(OSError):
    """They will not come; the text says why."""


def why_lost(directory: Path, name: str) -> str:
    """Why the pages of the page server `name` will not come, "" if nothing is known against it. It
    need not answer."""
    server = control.process_of(directory, name)
    if server is None:
        return ""
    if not server.ended and lives(server.pid):
        return ""
    return control.how_ended(directory, server).lost


async def all_sent(directory: Path, name: str, progress: ProgressLine) -> PostcopyStatus | None:
    """Wait until the page server `name` has sent them all; returns its last status, None if it
    was too fast to be asked. Raises PagesLostError; OSError, ValueError if it cannot be told how
    far it is."""
    server = control.process_of(directory, name)
    last = None
    try:
        while server is not None:
            # A thread cannot be cancelled: it waits a little at a time.
            with suppress(TimeoutError):
                told = await asyncio.to_thread(control.wait, directory, server, _LOOK_SECONDS)
                return PostcopyStatus.decode(told) if told else last
            with suppress(TimeoutError):
                last = await asyncio.to_thread(control.status, directory, server)
                what = f"postcopy: {last.faults:,} faults"
                if last.trouble:
                    what += f"; {last.trouble}"
                progress(what, last.pages - last.pages_left, last.pages)
    except EndedError as error:
        if error.lost:
            raise PagesLostError(error.lost) from error
    return last
