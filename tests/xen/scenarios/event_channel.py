"""A guest that is asked to suspend through an event channel, as Linux' drivers no longer are: a
program in it offers one, and lets its own kernel suspend when an event comes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.xen.dom0.commands import run, wait_until
from tests.xen.dom0.guest import RAMDISK, Guest
from tests.xen.scenarios.scenario import BOOKWORM, NONE, Scenario
from tests.xen.scenarios.toolstack import PATIENCE, done_by, nothing_is_left, succeeds

if TYPE_CHECKING:
    from tests.xen.dom0.lab import Lab

PROGRAM: Final = r"""
import fcntl, os, struct
channels = os.open("/dev/xen/evtchn", os.O_RDWR)
bind_unbound_port = 4 << 16 | ord("E") << 8 | 2
port = fcntl.ioctl(channels, bind_unbound_port, bytearray(struct.pack("=I", 0)))
print(f"suspend port {port}", flush=True)
os.read(channels, 4)
print("an event has come", flush=True)
xenstore = os.open("/dev/xen/xenbus", os.O_RDWR)
payload = b"control/shutdown\0suspend"
os.write(xenstore, struct.pack("=IIII", 11, 1, 0, len(payload)) + payload)
"""

INIT: Final = """#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox insmod /xen-evtchn.ko
/usr/bin/python3 -I -S /program.py &
exec /init
"""

PYTHON: Final = ("encodings", "codecs.py", "io.py", "abc.py", "os.py", "stat.py", "posixpath.py",
                 "genericpath.py", "_collections_abc.py", "struct.py")  # fmt: skip
"""The modules of the standard library that the program needs."""


class OfferingGuest(Guest):
    """A PVH guest whose ramdisk also has Python and the program."""

    def _config(self) -> str:
        ramdisk = Path("/tmp", f"{self.name}.cpio")
        ramdisk.write_bytes(RAMDISK.read_bytes() + _archive(Path("/tmp", f"{self.name}.tree")))
        return super()._config().replace(str(RAMDISK), str(ramdisk))


def _archive(tree: Path) -> bytes:
    """What the kernel unpacks on top of the guest's usual ramdisk: dom0's own Python."""
    library = Path("/usr/lib/python3.11")
    python = Path("/usr/bin/python3.11")
    needed = run(["ldd", python]).output.split()
    for file in (python, *(Path(word) for word in needed if word.startswith("/"))):
        _copy(file.resolve(), tree / file.relative_to("/"))
    (tree / "usr/bin/python3").symlink_to("python3.11")
    for name in PYTHON:
        _copy(library / name, tree / library.relative_to("/") / name)
    (module,) = Path("/lib/modules").glob("*/kernel/drivers/xen/xen-evtchn.ko")
    _copy(module, tree / module.name)
    (tree / "program.py").write_text(PROGRAM)
    (tree / "first-init").write_text(INIT)
    (tree / "first-init").chmod(0o755)
    names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    return subprocess.run(
        ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
        cwd=tree,
        input=f"{names}\n".encode(),
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    ).stdout


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def suspend_by_event(lab: Lab) -> None:
    """libxl creates this node for a guest on request; here dom0 writes it on the guest's behalf."""
    guest = OfferingGuest("offering", "pvh", memory=192, cmdline="rdinit=/first-init").create()
    domid = lab.domid(guest)
    wait_until("the guest offers a port", lambda: "suspend port " in guest.console, 60)
    port = guest.console.partition("suspend port ")[2].split()[0]
    node = f"/local/domain/{domid}/device/suspend/event-channel"
    assert run(["xenstore-write", node, port]).status == 0
    assert "an event has come" not in guest.console
    file = lab.directory / "saved"
    with done_by(lab, 1) as trace:
        succeeds("save", "-c", guest.name, file, *trace, *PATIENCE)
    assert "an event has come" in guest.console
    lab.assert_runs_on(guest, domid)
    nothing_is_left()


SCENARIOS: Final = (Scenario("toolstack-suspend-event-channel", suspend_by_event, NONE, BOOKWORM),)
