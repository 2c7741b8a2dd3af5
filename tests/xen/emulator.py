"""Runs QEMU with Xen and a dom0 in it, and notices if the emulator, rather than Xen, stands
still."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.xen.images import Image

MEMORY_MIB: Final = 6000
"""Enough for two HVM guests beside dom0; unused memory costs this computer nothing."""

_CPU: Final = "max,-rdtscp,-cx16,-xsave,-xsaveopt,-avx,-avx2,-fma,-f16c,-pku,-pks"
"""A PVH guest dies if there is RDTSCP; without AVX and XSAVE the emulation is steadiest.

QEMU 7.2's CMPXCHG16B takes the flags from an earlier instruction's operand. A kernel that is
interrupted at the instruction after it (which Linux's allocators use all the time) goes on with
bits of a pointer in EFLAGS: NT, TF, even reserved ones. A guest was seen to die of it.
"""
_XEN_OPTIONS: Final = (
    "console=com1 com1=115200,8n1 dom0_mem=2048M,max:2048M loglvl=warning bootscrub=0 "
    "smap=0 smep=0 xpti=no pcid=no spec-ctrl=no"
)
"""With SMAP or SMEP the dom0 kernel crashes at its first instructions under emulation. The memory
of a machine that starts is zero: scrubbing it would only make this computer allocate all of it."""
_DOM0_OPTIONS: Final = (
    "root=/dev/vda rw console=hvc0 init=/sbin/rig-init mitigations=off init_on_alloc=0"
)
"""Mitigations for speculation, and clearing memory before it is used, only cost time on an emulated
processor."""

LATE_SECONDS: Final = 4.0
"""Seconds without dom0's heartbeat after which it gets an interrupt (`Emulator._wake_if_late`)."""
SILENCE_SECONDS: Final = 20.0
"""Seconds without dom0's heartbeat after which an idle QEMU counts as frozen."""
IDLE_SHARE: Final = 0.2
"""The share of one processor below which QEMU is idle."""
_END_SECONDS: Final = 20
_ANSWER_SECONDS: Final = 60
_POLL_SECONDS: Final = 0.2
_FREEZE_POLL_SECONDS: Final = 2.0


class EmulatorError(Exception):
    """The emulator froze, or crashed a program that is not ours: the run proves nothing."""


class MachineError(Exception):
    """dom0 did not come up, or went down; the text has the last lines of its console."""


def seconds_wanted(pid: int) -> float:
    """Seconds for which a process's threads have used or waited for a processor: a thread that has
    to wait is not idle. Raises FileNotFoundError if the process is gone."""
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
    """What to boot: the image, and a hypervisor that replaces the image's own."""

    image: Image
    xen: Path

    @property
    def name(self) -> str:
        """A name for it, equal for all its users."""
        return self.image.suite.name if self.is_plain else f"{self.image.suite.name}-other-xen"

    @property
    def guests(self) -> tuple[str, ...]:
        """The kinds of guest that its machines keep."""
        return self.image.suite.guests if self.is_plain else ("pv", "pvh")

    @property
    def is_plain(self) -> bool:
        return self.xen == self.image.xen

    @property
    def command(self) -> list[str]:
        """The arguments of QEMU, except those that differ from one start to another."""
        return [
            # It ends with us, whatever ends us.
            *("setpriv", "--pdeathsig", "KILL"),
            "qemu-system-x86_64",
            *("-accel", "tcg,thread=multi"),
            *("-machine", "pc,memory-backend=ram"),
            *("-cpu", _CPU),
            *("-m", str(MEMORY_MIB)),
            *("-smp", "1"),
            *("-display", "none", "-no-reboot"),
            *("-kernel", str(self.xen)),
            *("-initrd", f"{self.image.kernel} {_DOM0_OPTIONS},{self.image.initrd}"),
            *("-append", _XEN_OPTIONS),
            *("-net", "none"),
        ]


class Emulator:
    """A running QEMU; its dom0 sees `share` under the 9p tag `host`."""

    def __init__(self, command: Sequence[str], share: Path, console: Path) -> None:
        """`command` is QEMU's, without the share and its channels; `console` receives all that Xen
        and dom0 write on their console."""
        self._console = console
        self._heartbeat = share / "heartbeat"
        self._line, line = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        with open(console, "wb") as out, line, monitor:
            self._process = subprocess.Popen(
                [
                    *command,
                    *("-virtfs", f"local,path={share},mount_tag=host,security_model=none"),
                    *("-serial", "stdio"),
                    *("-chardev", f"socket,id=line,fd={line.fileno()}"),
                    *("-serial", "chardev:line"),
                    *("-chardev", f"socket,id=monitor,fd={monitor.fileno()}"),
                    *("-mon", "chardev=monitor,mode=control"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                pass_fds=[line.fileno(), monitor.fileno()],
                start_new_session=True,
            )
        self._last_beat = 0.0
        self._life = time.monotonic(), 0.0
        self._heard = 0.0, time.monotonic()
        """The last heartbeat, and when it was first seen."""

    def until(self, path: Path, limit: float, what: str) -> Iterator[None]:
        """Yields now and then until `path` exists. Raises EmulatorError if the emulator has frozen,
        MachineError if it has ended or `limit` seconds are over."""
        end = time.monotonic() + limit
        next_look = 0.0
        while not path.exists():
            now = time.monotonic()
            if now >= next_look:
                next_look = now + _FREEZE_POLL_SECONDS
                self._look(what)
            if now >= end:
                raise self.lost(f"{what}: nothing within {limit:g} s")
            yield
            time.sleep(_POLL_SECONDS)

    def _look(self, what: str) -> None:
        status = self._process.poll()
        if status is not None:
            raise self.lost(f"{what}: dom0 went down, QEMU ended with {status}")
        if self._frozen():
            raise EmulatorError(
                f"{what}: QEMU idle and no heartbeat of dom0; its console ends:\n"
                f"{self.console_tail()}"
            )
        self._wake_if_late()

    def _wake_if_late(self) -> None:
        """Press a key that does nothing, if dom0 has been silent for a while.

        QEMU 7.2 loses an interrupt now and then: a processor that leaves a guest clears a bit of
        its word of interrupts without a lock (do_vmexit), and what a device sets in that word at
        the same time is gone. If it was that of Xen's timer, no further one comes: a guest that
        waits in a loop for another of its vCPUs was seen to keep the processor for minutes, with
        the timer's vector in the APIC's IRR. The APIC raises all that is there once any other
        device has an interrupt.
        """
        beat, now = self._beat(), time.monotonic()
        if beat != self._heard[0]:
            self._heard = beat, now
        elif beat and now - self._heard[1] >= LATE_SECONDS:
            self.ask("send-key", keys=[{"type": "qcode", "data": "shift"}])

    def _beat(self) -> float:
        """When dom0 last wrote its heartbeat, 0 if it has not yet."""
        try:
            return self._heartbeat.stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def lost(self, why: str) -> MachineError:
        """A MachineError with the end of dom0's console."""
        return MachineError(f"{why}; dom0's console ends:\n{self.console_tail()}")

    def tell(self, text: bytes) -> None:
        """Send bytes to the process that reads dom0's second serial line."""
        self._line.sendall(text)

    def hear(self, text: bytes) -> None:
        """Wait for this text on the second serial line. Raises TimeoutError, MachineError."""
        self._line.settimeout(_ANSWER_SECONDS)
        heard = b""
        while text not in heard:
            new = self._line.recv(256)
            if not new:
                raise self.lost("QEMU has ended")
            heard += new

    def ask(self, command: str, **arguments: Any) -> Any:
        """QEMU's answer to a QMP command. Raises MachineError if QEMU refuses it, and
        TimeoutError."""
        request = {"execute": command, "arguments": arguments}
        self._monitor.settimeout(_ANSWER_SECONDS)
        self._monitor.sendall(json.dumps(request).encode())
        with self._monitor.makefile() as answers:
            # Between its greeting and events.
            for answer in map(json.loads, answers):
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    break
        raise self.lost(f"QEMU refuses {command}: {answer}")

    def _frozen(self) -> bool:
        """Whether QEMU is frozen; to be called every second or so."""
        try:
            wanted = seconds_wanted(self._process.pid)
        except FileNotFoundError:
            return False
        now, beat = time.monotonic(), self._beat()
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
        """End QEMU at once, as if the power failed."""
        self._process.kill()
        self._process.wait(_END_SECONDS)
        self._line.close()
        self._monitor.close()
