"""Guests that were booted once, when the machine was made, and are brought back by a restore: the
emulated processor takes a minute or more to boot one, and some seconds to restore it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.xen.dom0.commands import run
from tests.xen.dom0.guest import Guest

DIRECTORY: Final = Path("/var/lib/rig/guests")
_SAVE_SECONDS: Final = 120
_RESTORE_SECONDS: Final = 120


def keep(kind: str) -> None:
    """Boot a guest of `kind` with as little memory as suffices, and save it once it counts."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    guest = Guest(f"kept-{kind}", kind).create()
    done = run(["xl", "save", guest.name, _image(kind)], _SAVE_SECONDS)
    assert done.status == 0, f"xl save: {done.output}"
    _console(kind).write_text(guest.console)


def bring_back(guest: Guest) -> Guest:
    """Restore the guest with libxl's own helper (`xl restore`) if one like it is kept, else create
    it (`Guest.create`). Returns once it counts."""
    if not guest.is_plain or not _image(guest.kind).exists():
        return guest.create()
    guest.arrived(_console(guest.kind).read_text())
    count = guest.count
    helper = {"LIBXL_SAVE_HELPER": None}
    done = run(["xl", "restore", guest.configure(), _image(guest.kind)], _RESTORE_SECONDS, helper)
    assert done.status == 0, f"xl restore: {done.output}"
    guest.wait_for_count(count + 1)
    return guest


def _image(kind: str) -> Path:
    return DIRECTORY / f"{kind}.xl"


def _console(kind: str) -> Path:
    return DIRECTORY / f"{kind}.console"
