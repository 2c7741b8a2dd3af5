"""Guests that were booted once, when the machine was made, and that a restore brings back: to boot
one takes the emulated processor a minute or more, to restore one some seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.xen.dom0.commands import run
from tests.xen.dom0.guest import Guest

DIRECTORY: Final = Path("/var/lib/rig/guests")
_SAVE_SECONDS: Final = 120
_RESTORE_SECONDS: Final = 120


def keep(kind: str) -> None:
    """Boot a guest of `kind`, with as little memory as does, and save it when it counts."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    guest = Guest(f"kept-{kind}", kind).create()
    done = run(["xl", "save", guest.name, _image(kind)], _SAVE_SECONDS)
    assert done.status == 0, f"xl save: {done.output}"
    _console(kind).write_text(guest.console)


def bring_back(guest: Guest) -> Guest:
    """`xl restore` with libxl's own helper, where one like this is kept, else `Guest.create`; it
    counts."""
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
