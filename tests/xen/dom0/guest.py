"""Guests that count on their consoles, and the proof that one goes on from where it was."""

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
"""How long a new guest may take until it counts: several times what it does take, for the machines
that emulate this one may have much else to do."""

IGNORES_SUSPEND: Final = "initcall_blacklist=xen_setup_shutdown_event"
"""For a guest's command line: Linux without the part that listens to control/shutdown."""

KEPT: Final = b"kept from the start\n"
"""What the first page of memory begins with that a guest keeps unchanged."""

_COUNT: Final = re.compile(r"^count (\d+)\r?\n", re.MULTILINE)
"""A whole line: of one that is still being written, the last digits may be to come."""


def dom0_kernel(kind: str) -> Path:
    """Guests run dom0's own kernel: unpacked, so that `xl` need not, where libxc loads it. An HVM
    guest's device model wants a bzImage."""
    (kernel,) = Path("/boot").glob("vmlinuz-*" if kind == "hvm" else "vmlinux-*")
    return kernel


class Guest:
    """A guest by name. Its console's text comes from the logs of all domains that it has been: a
    migrated guest may go on writing to the log of the name that it had when it was made."""

    def __init__(
        self, name: str, kind: str, memory: int = 0, cmdline: str = "", dirty: int = 0
    ) -> None:
        """`memory` in MiB, 0 for as little as does. `dirty`: the guest keeps writing so many MiB
        of its memory over and over."""
        assert kind in KINDS
        self.name = name
        self.kind = kind
        self.memory = memory or (128 if kind == "hvm" else 96) + self._more_for_new_kernels()
        self.cmdline = (
            f"console=hvc0 quiet mitigations=off init_on_alloc=0 dirty={dirty} {cmdline}".strip()
        )
        self._read: dict[Path, int] = {}
        self._text = ""

    @staticmethod
    def _more_for_new_kernels() -> int:
        # Debian 12's kernel is 6.1.
        return 0 if platform.release().startswith("6.1.") else 96

    def create(self) -> Guest:
        """`xl create`; returns when it counts."""
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
        """No more than its kind, and as little memory as does."""
        plain = Guest(self.name, self.kind)
        return (self.memory, self.cmdline) == (plain.memory, plain.cmdline)

    def arrived(self, console: str) -> Guest:
        """It comes from another host, where it wrote `console`: it is to go on from there. What was
        written here before, under its name, was another one's."""
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
        numbers = {"memory": self.memory, "vcpus": 1}
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
        """Its memory. The first round of a migration was seen to send 8 MiB more."""
        return self.memory << 20

    @property
    def console(self) -> str:
        """All that it has written, in every place that it has lived."""
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
        """Every number that it has written."""
        return [int(number) for number in _COUNT.findall(self.console)]

    @property
    def count(self) -> int:
        """The last number, -1 before the first."""
        return self.counts[-1] if self.counts else -1

    def wait_for_count(self, number: int, limit: float = 60) -> None:
        """AssertionError with the console's end where it does not come to count so far."""
        try:
            wait_until(f"{self.name} counts to {number}", lambda: self.count >= number, limit)
        except AssertionError as late:
            raise AssertionError(f"{late}; its console ends: {self.console[-1500:]}") from None

    def goes_on(self, seconds: int = 3, limit: float = 60) -> None:
        """It counts on, `seconds` more numbers, and in all its life has left out no number and
        written none twice: AssertionError otherwise."""
        self.wait_for_count(self.count + seconds, limit)
        counts = self.counts
        assert counts == list(range(len(counts))), f"{self.name} counted {counts}"
        assert "damaged" not in self.console, f"{self.name}: {self.console[-500:]}"
