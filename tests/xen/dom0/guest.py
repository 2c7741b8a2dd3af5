"""Guests that count on their consoles, which proves that a guest goes on from where it was."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Final

from tests.xen.dom0.commands import run, wait_until

CONSOLES: Final = Path("/run/console")
RAMDISK: Final = Path("/run/rig/guest.cpio")

KINDS: Final = ("pv", "pvh", "hvm")
COUNTS_SECONDS: Final = 480
"""How long a new guest may take to start counting: several times what it usually takes, since the
computer that emulates this one may be busy."""

GOES_ON_SECONDS: Final = 240
"""How long a guest may take to count a few numbers more, for the same reason: of three guests on a
busy computer, one was seen to take 20 s for each."""

IGNORES_SUSPEND: Final = "initcall_blacklist=xen_setup_shutdown_event"
"""For a guest's command line: disables the part of Linux that listens to control/shutdown."""

KEPT: Final = b"kept from the start\n"
"""What the first page begins with of the memory that a guest keeps unchanged."""

_COUNT: Final = re.compile(r"^count (\d+)\r?\n", re.MULTILINE)
"""A whole line: the last digits of an unfinished one may still be missing."""


def dom0_kernel(kind: str) -> Path:
    """Guests run dom0's own kernel. It is unpacked in advance, so that `xl` need not do that, if
    libxc is to load it. An HVM guest's device model needs a bzImage."""
    (kernel,) = Path("/boot").glob("vmlinuz-*" if kind == "hvm" else "vmlinux-*")
    return kernel


class Guest:
    """A guest, by name. Its console output comes from the logs of all the domains that it has been:
    a migrated guest may go on writing to the log of the name that it was created with."""

    def __init__(
        self,
        name: str,
        kind: str,
        memory: int = 0,
        cmdline: str = "",
        dirty: int = 0,
        vcpus: int = 1,
    ) -> None:
        """`memory` is in MiB, 0 for as little as suffices. `dirty`: the guest keeps overwriting
        that many MiB of its memory."""
        assert kind in KINDS
        self.name = name
        self.kind = kind
        self.vcpus = vcpus
        self.memory = memory or self.least_memory(kind)
        self.cmdline = (
            f"console=hvc0 quiet mitigations=off init_on_alloc=0 dirty={dirty} {cmdline}".strip()
        )
        self._read: dict[Path, int] = {}
        self._text = ""

    @staticmethod
    def least_memory(kind: str) -> int:
        """As many MiB as suffice for a guest of one vCPU; newer kernels than Debian 12's need
        more."""
        newer = 0 if platform.release().startswith("6.1.") else 96
        return (128 if kind == "hvm" else 96) + newer

    def create(self) -> Guest:
        """Create it with `xl create`; returns once it counts."""
        done = run(["xl", "create", self.configure()], limit=120)
        assert done.status == 0, f"xl create: {done.output}"
        self.wait_for_count(1, COUNTS_SECONDS)
        return self

    def configure(self) -> Path:
        """Write its configuration for `xl`."""
        config = Path("/tmp", f"{self.name}.cfg")
        config.write_text(self._config())
        return config

    @property
    def is_plain(self) -> bool:
        """Request only its kind, and as little memory as suffices."""
        plain = Guest(self.name, self.kind)
        return self._config() == plain._config()

    def arrived(self, console: str) -> Guest:
        """The guest comes from another host, where its output was `console`; it has to go on from
        there. Anything that was written here under its name came from another guest."""
        self._text = console
        self._read = {path: path.stat().st_size for path in self._logs() if path.exists()}
        return self

    def _logs(self) -> list[Path]:
        names = (self.name, f"{self.name}--incoming")
        return [CONSOLES / f"guest-{name}.log" for name in names]

    def _config(self) -> str:
        lines = {
            "name": self.name,
            "type": self.kind,
            "kernel": str(dom0_kernel(self.kind)),
            "ramdisk": str(RAMDISK),
            "cmdline": self.cmdline,
            "on_crash": "destroy",
        }
        if self.kind == "hvm":
            lines |= {"vga": "none"}
        numbers = {"memory": self.memory, "vcpus": self.vcpus}
        if self.kind == "hvm":
            numbers |= {"vnc": 0}
        return "".join(
            [
                *(f'{name} = "{value}"\n' for name, value in lines.items()),
                *(f"{name} = {number}\n" for name, number in numbers.items()),
            ]
        )

    @property
    def octets(self) -> int:
        """The guest's memory in MiB. The first round of a migration was seen to send 8 MiB more."""
        return self.memory << 20

    @property
    def console(self) -> str:
        """All its output, from every domain that it has been."""
        for path in self._logs():
            if path.exists():
                with open(path, "rb") as log:
                    log.seek(self._read.get(path, 0))
                    new = log.read()
                self._read[path] = self._read.get(path, 0) + len(new)
                self._text += new.decode(errors="replace")
        return self._text

    @property
    def counts(self) -> list[int]:
        """All the numbers that it has written."""
        return [int(number) for number in _COUNT.findall(self.console)]

    @property
    def count(self) -> int:
        """The last number, or -1 if there is none."""
        return self.counts[-1] if self.counts else -1

    def wait_for_count(self, number: int, limit: float = GOES_ON_SECONDS) -> None:
        """Raises an AssertionError with the end of the console output if the guest does not count
        up to this number."""
        try:
            wait_until(f"{self.name} counts to {number}", lambda: self.count >= number, limit)
        except AssertionError as late:
            raise AssertionError(f"{late}; its console ends: {self.console[-1500:]}") from None

    def goes_on(self, seconds: int = 3, limit: float = GOES_ON_SECONDS) -> None:
        """Check that it counts on for `seconds` more numbers, and that it has never left out or
        repeated a number. Raises AssertionError."""
        self.wait_for_count(self.count + seconds, limit)
        counts = self.counts
        assert counts == list(range(len(counts))), f"{self.name} counted {counts}"
        assert "damaged" not in self.console, f"{self.name}: {self.console[-500:]}"
