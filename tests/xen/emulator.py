"""Runs QEMU with Xen and a dom0 in it, and notices if the emulator, not Xen, stands still."""

from __future__ import annotations

import contextlib
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.xen.images import Image

MEMORY_MIB: Final = 4096
HVM_MEMORY_MIB: Final = 6000

_CPU: Final = "max,-rdtscp,-cx16,-xsave,-xsaveopt,-avx,-avx2,-fma,-f16c,-pku,-pks"
"""A PVH guest dies if there is RDTSCP; without AVX and XSAVE the emulation is steadiest.

QEMU 7.2's CMPXCHG16B takes the flags from an earlier instruction's operand. A kernel that is
interrupted at the instruction after it (Linux's allocators use it all the time) goes on with bits
of a pointer in EFLAGS: NT, TF, even reserved ones. Seen as a guest that died of it.
"""
_XEN_OPTIONS: Final = (
    "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M loglvl=warning "
    "smap=0 smep=0 xpti=no pcid=no spec-ctrl=no"
)
"""With SMAP or SMEP the dom0 kernel crashes at its first instructions under emulation."""
_DOM0_OPTIONS: Final = (
    "root=/dev/vda rw console=hvc0 init=/sbin/rig-init mitigations=off init_on_alloc=0"
)
"""Mitigations for speculation only cost time on an emulated processor, and so does clearing all
memory before it is used."""

SILENCE_SECONDS: Final = 20.0
"""Seconds without dom0's heartbeat, and idle, that mean frozen."""
IDLE_SHARE: Final = 0.2
"""The share of one processor below which QEMU is idle."""
_END_SECONDS: Final = 20


def seconds_wanted(pid: int) -> float:
    """Seconds for which a process's threads have used or waited for a processor: one that has to
    wait is not idle. Raises FileNotFoundError if the process is gone."""
    nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ran, waited, _slices = (thread / "schedstat").read_text().split()
            nanoseconds += int(ran) + int(waited)
    return nanoseconds / 1e9


def is_frozen(silence: float, wanted: float) -> bool:
    """Whether QEMU is frozen, after `silence` seconds without a sign of life from dom0, in which it
    `wanted` so many seconds of a processor.

    A busy QEMU with a silent dom0 is slow, or loops in dom0 or Xen: the time limits deal with that.
    """
    return silence >= SILENCE_SECONDS and wanted < IDLE_SHARE * silence


@dataclass(frozen=True)
class Setup:
    """What to boot: the image, a hypervisor instead of the image's own, and memory for HVM."""

    image: Image
    xen: Path
    hvm: bool = False


class Emulator:
    """A running QEMU. dom0 has `share` by the 9p tag `host`; the disk's changes are discarded."""

    def __init__(self, setup: Setup, share: Path, console: Path) -> None:
        self._console = console
        self._heartbeat = share / "heartbeat"
        with open(console, "wb") as out:
            self._process = subprocess.Popen(
                _command(setup, share),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._last_beat = 0.0
        self._life = time.monotonic(), 0.0

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def status(self) -> int | None:
        return self._process.poll()

    def frozen(self) -> bool:
        """Whether QEMU is frozen; to be called every second or so."""
        try:
            wanted = seconds_wanted(self._process.pid)
        except FileNotFoundError:
            return False
        now = time.monotonic()
        try:
            beat = self._heartbeat.stat().st_mtime
        except FileNotFoundError:
            beat = 0.0
        if beat != self._last_beat or wanted - self._life[1] >= IDLE_SHARE * SILENCE_SECONDS:
            self._last_beat = beat
            self._life = now, wanted
        since, before = self._life
        return is_frozen(now - since, wanted - before)

    def console_tail(self, lines: int = 40) -> str:
        """The last lines of Xen's and dom0's console."""
        text = self._console.read_bytes()[-20000:].decode(errors="replace")
        return "\n".join(text.replace("\r", "").splitlines()[-lines:])

    def end(self) -> None:
        """Pull the plug."""
        self._process.kill()
        self._process.wait(_END_SECONDS)


def _command(setup: Setup, share: Path) -> list[str]:
    image = setup.image
    return [
        # It ends with us, whatever ends us.
        *("setpriv", "--pdeathsig", "KILL"),
        "qemu-system-x86_64",
        *("-accel", "tcg,thread=multi"),
        *("-cpu", _CPU),
        *("-m", str(HVM_MEMORY_MIB if setup.hvm else MEMORY_MIB)),
        *("-smp", "1"),
        *("-nographic", "-no-reboot"),
        *("-kernel", str(setup.xen)),
        *("-initrd", f"{image.kernel} {_DOM0_OPTIONS},{image.initrd}"),
        *("-append", _XEN_OPTIONS),
        *("-drive", f"file={image.root},if=virtio,format=raw,snapshot=on"),
        *("-virtfs", f"local,path={share},mount_tag=host,security_model=none"),
        *("-net", "none"),
    ]
