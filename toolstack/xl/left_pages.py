"""Waits for a guest's last pages, which a page server still sends to where the guest runs."""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from xen_save_helper.ipc_schema.control import (
    LONGEST_LINE,
    Ask,
    Identity,
    PostcopyStatus,
    decode_line,
    encode_line,
)
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
    server = next((one for one in control.processes(directory) if one.name == name), None)
    if server is None:
        return ""
    if not server.ended and os.path.exists(f"/proc/{server.pid}"):
        return ""
    return control.how_ended(directory, server).lost


async def all_sent(directory: Path, name: str, progress: ProgressLine) -> PostcopyStatus | None:
    """Wait until the page server `name` has sent them all; returns its last status, None if it
    had ended before. Raises PagesLostError."""
    server = next((one for one in control.processes(directory) if one.name == name), None)
    if server is None:
        return None
    ended = asyncio.ensure_future(_ended(directory, server))
    try:
        while not (await asyncio.wait([ended], timeout=_LOOK_SECONDS))[0]:
            with suppress(OSError, EndedError):
                status = await asyncio.to_thread(control.status, directory, server)
                there = status.pages - status.pages_left
                what = f"postcopy: {status.faults:,} faults"
                if status.trouble:
                    what += f"; {status.trouble}"
                progress(what, there, status.pages)
        return ended.result()
    except EndedError as error:
        if not error.lost:
            return None
        raise PagesLostError(error.lost) from error
    finally:
        ended.cancel()


async def _ended(directory: Path, process: Identity) -> PostcopyStatus:
    """Wait, in a loop, until it has done its work; returns its last status. Raises EndedError if it
    ends otherwise, or has ended."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        control.connect(sock, directory, process)
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=LONGEST_LINE)
    except OSError:
        sock.close()
        raise control.how_ended(directory, process) from None
    try:
        writer.write(encode_line({"ask": Ask.WAIT}))
        answer = await reader.readline()
    except ConnectionError:
        answer = b""
    finally:
        writer.close()
    if not answer.endswith(b"\n"):
        raise control.how_ended(directory, process)
    told = decode_line(answer)
    if told["ended"]:
        raise EndedError(str(told["ended"]))
    return PostcopyStatus.decode(told["status"])
