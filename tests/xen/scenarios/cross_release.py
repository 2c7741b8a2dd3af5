"""A guest saved on one release of Xen is restored on a later one, and back where Xen allows: files
go from machine to machine, each of which runs one of the three scenarios.

The emulated processor is the same. What "allows" means is tried: where a restore with our helper
fails, one with libxl's has to fail, too.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen import crossings
from tests.xen.crossings import Crossing
from tests.xen.dom0 import kept_guests
from tests.xen.dom0.commands import Ended, run
from tests.xen.dom0.guest import KINDS, Guest, dom0_kernel
from tests.xen.dom0.lab import COMMAND_SECONDS, LIBXL, MISSING, OURS, Helper, xen_version
from tests.xen.scenarios.scenario import BOOKWORM, NONE, TRIXIE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE
from xen_save_helper.toolstack.hosts.xen import xl

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

QEMU: Final = "/usr/libexec/xen-qemu-system-i386"
KERNEL: Final = "kernel"
"""For the HVM guest: its device model loads it at each start, so it goes wherever the guest
goes."""
_SAVED_ON: Final = "saved-on"
_LIMIT: Final = 1200


class Traveller(Guest):
    """A guest whose configuration names nothing that exists only on the host where it was made."""

    kernel: Path | None = None

    def _config(self) -> str:
        text = super()._config()
        if self.kernel is not None:
            text = text.replace(str(dom0_kernel(self.kind)), str(self.kernel))
        return text


@cache
def this_host() -> str:
    """The releases of Xen and QEMU."""
    version = re.search(r"version (\S+)", run([QEMU, "--version"]).output)
    return f"Xen {xen_version()}, QEMU {version[1] if version else '?'}"


def leaves(lab: Lab) -> None:
    """A guest of each kind is saved and handed over, with its output so far."""
    _begin_to_hand_over(lab)
    kernel = _place_kernel(lab, dom0_kernel("hvm"))
    shutil.copy(kernel, lab.handed_over / KERNEL)
    for kind in KINDS:
        guest = Traveller(kind, kind)
        guest.kernel = kernel if kind == "hvm" else None
        kept_guests.bring_back(guest)
        _send_on(lab, guest)


def arrives(lab: Lab) -> None:
    """Each is restored by xl with our helper, and by our controller, and saved again here."""
    _begin_to_hand_over(lab)
    shutil.copy(_place_kernel(lab, lab.given / KERNEL), lab.handed_over / KERNEL)
    rows: list[Crossing] = []
    for kind in KINDS:
        for command in ("xl", "xen-toolstack"):
            row, guest = _restored(lab, kind, command, OURS)
            _tell(lab, rows, row)
            assert guest is not None, row.ended
            if command == "xl":
                lab.xl(["destroy", guest.name])
        _send_on(lab, guest)


def comes_back(lab: Lab) -> None:
    """Each is restored by xl with our helper; if that fails, libxl's helper must fail as well."""
    _place_kernel(lab, lab.given / KERNEL)
    rows: list[Crossing] = []
    for kind in KINDS:
        row, guest = _restored(lab, kind, "xl", OURS)
        _tell(lab, rows, row)
        if guest is None:
            row, guest = _restored(lab, kind, "xl", LIBXL)
            _tell(lab, rows, row)
            assert guest is None, "libxl's helper restores what ours does not"
            assert lab.domains() == {}
        else:
            lab.xl(["destroy", guest.name])


def _begin_to_hand_over(lab: Lab) -> None:
    lab.handed_over.mkdir()
    (lab.handed_over / _SAVED_ON).write_text(this_host())


def _place_kernel(lab: Lab, kernel: Path) -> Path:
    """The place that the HVM guest's configuration gives, on every host."""
    return Path(shutil.copy(kernel, lab.directory / KERNEL))


def _send_on(lab: Lab, guest: Guest) -> None:
    # Not onto the share at once: it takes no pages that are mapped from another domain (EFAULT).
    file = lab.directory / guest.kind
    lab.save(guest, file)
    shutil.move(file, lab.handed_over)
    (lab.handed_over / f"{guest.kind}.console").write_text(guest.console)


def _restored(lab: Lab, kind: str, command: str, helper: Helper) -> tuple[Crossing, Guest | None]:
    """How a restore went, and the guest, if it counts on from where it was on the other host."""
    file = lab.given / kind
    guest = Traveller(kind, kind).arrived((lab.given / f"{kind}.console").read_text())
    done = _restore(lab, file, command, helper)
    row = Crossing(
        kind,
        (lab.given / _SAVED_ON).read_text(),
        this_host(),
        command,
        helper.program.name,
        "runs on",
        done.seconds,
    )
    if done.status:
        why = xl.complaint(done.output.splitlines()) or f"exit status {done.status}"
        return replace(row, ended=f"refused: {why}"), None
    assert MISSING not in done.output, "a false alarm"
    lab.assert_only(guest)
    guest.goes_on()
    return row, guest


def _restore(lab: Lab, file: Path, command: str, helper: Helper) -> Ended:
    if command == "xl":
        return lab.xl(["restore", file], helper, limit=COMMAND_SECONDS)
    assert helper == OURS
    return run([command, "restore", file, *PATIENCE, "--events", lab.trace], COMMAND_SECONDS)


def _tell(lab: Lab, rows: list[Crossing], row: Crossing) -> None:
    rows.append(row)
    crossings.write(rows, lab.results / crossings.RESULTS_NAME)
    print(crossings.text([row]), flush=True)


SCENARIOS: Final = (
    Scenario("cross-release-leave", leaves, limit=_LIMIT),
    Scenario(
        "cross-release-arrive",
        arrives,
        TRIXIE,
        limit=_LIMIT,
        after="cross-release-leave",
    ),
    Scenario(
        "cross-release-back",
        comes_back,
        NONE,
        BOOKWORM,
        limit=_LIMIT,
        after="cross-release-arrive",
    ),
)
