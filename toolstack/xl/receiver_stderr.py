"""What a receiver writes to stderr: shown as it comes, but for what we tell in the end."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from typing import Final

_OWN: Final = "xen-toolstack: "
"""The prefix of a receiver's own lines."""
_OWN_BYTES: Final = _OWN.encode()
_LOOK_SECONDS: Final = 0.1


class ReceiverStderr:
    """A file to be a receiver's stderr; not a pipe, since who writes to that is killed once we have
    gone. `echo`: another program's words are shown on our stderr, within a tenth of a second; the
    last line in which a receiver of ours speaks for itself is held back, since the result of the
    migration has it."""

    def __init__(self, *, echo: bool) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # until `close`
        self._echo = echo
        self._shown = 0
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None

    def fileno(self) -> int:
        return self._file.fileno()

    def watch(self) -> None:
        """Show what comes from now on. Needs a running asyncio loop."""
        if self._echo:
            self._show(self._new())
            self._timer = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self.watch)

    def own_lines(self) -> list[str]:
        """The lines in which the receiver speaks for itself, or those of a traceback."""
        lines = self._all()
        own = [line.removeprefix(_OWN) for line in lines if line.startswith(_OWN)]
        if not own and any(line.startswith("Traceback") for line in lines):
            return lines
        return own

    def lines(self) -> list[str]:
        return [line.removeprefix(_OWN) for line in self._all()]

    def close(self) -> None:
        """Show the rest."""
        if self._file.closed:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._show(self._new(last=True))
        self._file.close()

    def _all(self) -> list[str]:
        self._file.seek(0)
        return self._file.read().decode(errors="replace").strip().splitlines()

    def _new(self, *, last: bool = False) -> list[bytes]:
        """What has come since: whole lines, and a part of one, such as a prompt, that cannot become
        one of the receiver's own."""
        self._file.seek(self._shown)
        parts = self._file.read().splitlines(keepends=True)
        if parts and not last and not parts[-1].endswith(b"\n") and _may_be_own(parts[-1]):
            parts.pop()
        self._shown += sum(map(len, parts))
        return parts

    def _show(self, parts: list[bytes]) -> None:
        for part in parts:
            shown = part
            if part.startswith(_OWN_BYTES):
                shown, self._held = self._held, part
            sys.stderr.write(shown.decode(errors="replace"))
        if parts:
            sys.stderr.flush()


def _may_be_own(part: bytes) -> bool:
    return part.startswith(_OWN_BYTES) or _OWN_BYTES.startswith(part)
