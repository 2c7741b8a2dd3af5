"""Machines as they were when dom0 had booted: made once, and started again and again in seconds.

An emulated dom0 takes a minute to boot, and each of the guests that most scenarios begin with as
long. So a machine boots once, keeps some guests (`dom0.kept_guests`), gives the share back and is
written to the cache: its memory as a file, which each machine that is started from it maps
privately, so that they share what they do not change; its disk; and QEMU's state of processor and
devices.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.xen import host_tools, share
from tests.xen.cache import CACHE, exclusive, scratch
from tests.xen.dom0.prepare import READY
from tests.xen.emulator import MEMORY_MIB, Emulator, MachineError, Setup

_PREPARE_SECONDS: Final = 1800
_POLL_SECONDS: Final = 0.2
_OF_THE_RIG: Final = ("init.sh", "prepare.py", "kept_guests.py", "guest.py", "../guest-init")
"""The files, from `dom0`, that a kept machine was made by."""


@dataclass(frozen=True)
class KeptMachine:
    """A directory with `memory`, `disk` and `state`."""

    setup: Setup
    directory: Path

    def start(self, shared: Path, console: Path) -> Emulator:
        """A machine that goes on from the kept state, which it does not change. Raises
        MachineError."""
        memory = _memory(self.directory / "memory", share=False)
        disk = _disk(self.directory / "disk", keep=False)
        command = [*self.setup.command, *memory, *disk, "-incoming", "defer"]
        emulator = Emulator(command, shared, console)
        try:
            _leave_memory_out(emulator)
            emulator.ask("migrate-incoming", uri=f"exec:cat {self.directory / 'state'}")
            emulator.tell(f"{time.time():.0f}\n".encode())
        except BaseException:
            emulator.end()
            raise
        return emulator


def kept_machine(setup: Setup) -> KeptMachine:
    """The kept machine of `setup`, made now (in minutes) if there is none. Raises EmulatorError,
    MachineError, host_tools.MissingToolsError."""
    name = f"machine-{setup.name}"
    directory = CACHE / f"{name}-{_key(setup)}"
    if not directory.is_dir():
        with exclusive(name):
            if not directory.is_dir():
                with scratch(name) as parts:
                    _make(setup, parts)
                    (parts / "kept").rename(directory)
                for old in CACHE.glob(f"{name}-????????????"):
                    if old != directory:
                        # A running QEMU keeps its open files.
                        shutil.rmtree(old)
    return KeptMachine(setup, directory)


def _key(setup: Setup) -> str:
    version = ["qemu-system-x86_64", "--version"]
    emulator = subprocess.run(version, check=True, capture_output=True, text=True).stdout
    code = [(Path(__file__).parent / "dom0" / name).read_text() for name in _OF_THE_RIG]
    recipe = json.dumps([emulator, setup.command, setup.guests, code])
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


def _make(setup: Setup, parts: Path) -> None:
    """Make the machine in `parts / "kept"`."""
    host_tools.need("qemu-system-x86_64")
    print(f"tests.xen: booting {setup.name} and its guests (once)", flush=True)
    kept, shared = parts / "kept", parts / "share"
    kept.mkdir()
    share.make(shared)
    (shared / "rig" / "guests").write_text(" ".join(setup.guests))
    subprocess.run(["cp", "--sparse=always", setup.image.root, kept / "disk"], check=True)
    command = [*setup.command, *_memory(kept / "memory", share=True), *_disk(kept / "disk")]
    emulator = Emulator(command, shared, parts / "console")
    try:
        for _ in emulator.until(shared / "kept.json", _PREPARE_SECONDS, "boot"):
            pass
        done = json.loads((shared / "kept.json").read_text())
        if "error" in done:
            raise MachineError(done["error"])
        emulator.hear(READY)
        _leave_memory_out(emulator)
        emulator.ask("migrate", uri=f"exec:cat >{kept / 'state'}")
        while (status := emulator.ask("query-migrate")["status"]) not in ("completed", "failed"):
            time.sleep(_POLL_SECONDS)
        if status == "failed":
            raise emulator.lost("QEMU could not write its state")
        emulator.ask("quit")
    finally:
        emulator.end()


def _leave_memory_out(emulator: Emulator) -> None:
    """Leaves the memory out of QEMU's state: it is in a file of its own."""
    emulator.ask("qmp_capabilities")
    capability = {"capability": "x-ignore-shared", "state": True}
    emulator.ask("migrate-set-capabilities", capabilities=[capability])


def _memory(file: Path, share: bool) -> list[str]:
    own = "on" if share else "off"
    backend = f"memory-backend-file,id=ram,size={MEMORY_MIB}M,mem-path={file},share={own}"
    return ["-object", backend]


def _disk(file: Path, keep: bool = True) -> list[str]:
    changes = "off" if keep else "on"
    return ["-drive", f"file={file},if=virtio,format=raw,snapshot={changes}"]
