"""Build the stand-in, and put Debian's own libxenctrl and libxenguest on it, for each release."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.debian_packages import unpacked, unpacked_from
from tests.hypercalls.machine import STRUCTS

RELEASES: Final = ("4.17", "4.20")

HERE: Final = Path(__file__).parent
STANDS_IN_FOR: Final = (
    "libxencall.so.1",
    "libxendevicemodel.so.1",
    "libxenevtchn.so.1",
    "libxenforeignmemory.so.1",
    "libxengnttab.so.1",
)
"""One library under five names, which the loader loads once."""

_LIBRARIES: Final = Path("usr/lib/x86_64-linux-gnu")
_TRIXIES_LIBC: Final = (2, 38)
"""The libc that trixie's libraries need. If this machine's is older they get trixie's own."""


@dataclass(frozen=True)
class Release:
    """A release whose libraries are in `directory`. `loader`, which may be empty, goes before the
    command of a process that uses them: it runs Python on another release's libc."""

    version: str
    directory: Path
    loader: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        return {"LD_LIBRARY_PATH": str(self.directory)}

    @property
    def library(self) -> Path:
        """The stand-in."""
        return self.directory / "libhypercalls.so"

    @property
    def python(self) -> list[str]:
        return [*self.loader, sys.executable]


def built(directory: Path, version: str) -> Release:
    """Build the stand-in for this release in a new `directory`. The compiler's errors fail the
    test. Raises PackageUnavailableError without Debian's packages."""
    headers, xen, toollog, *_ = _packages(version)
    directory.mkdir()
    check = directory / "layout_check.h"
    check.write_text(layout_check())
    library = directory / "libhypercalls.so"
    options = ("-Wall", "-Wextra", "-Wno-unused-parameter", "-Werror", "-O2", "-std=gnu11")
    subprocess.run(
        [
            *("gcc", *options, "-fPIC", "-shared", "-pthread", "-o", library),
            *("-isystem", headers / "usr/include", f'-DLAYOUT_CHECK="{check}"'),
            *(
                f"-Wl,--version-script={HERE / 'hypercalls.map'}",
                "-Wl,-soname",
                f"-Wl,{library.name}",
            ),
            *sorted(HERE.glob("*.c")),
        ],
        check=True,
        timeout=240,
    )
    for name in STANDS_IN_FOR:
        (directory / name).symlink_to(library.name)
    for name in (f"libxenctrl.so.{version}", f"libxenguest.so.{version}"):
        (directory / name).symlink_to(xen / _LIBRARIES / name)
    (directory / "libxentoollog.so.1").symlink_to(toollog / _LIBRARIES / "libxentoollog.so.1")
    return release_in(directory, version)


def release_in(directory: Path, version: str) -> Release:
    """The release that was built in `directory`."""
    _, _, _, *libc = _packages(version)
    return Release(version, directory, _loader(directory, libc[0]) if libc else ())


def _packages(version: str) -> list[Path]:
    names = ("libxen-dev", f"libxenmisc{version}", "libxentoollog1")
    if version == "4.17":
        return [unpacked(name) for name in names]
    return unpacked_from("trixie", *names, *(("libc6",) if _libc() < _TRIXIES_LIBC else ()))


def _libc() -> tuple[int, ...]:
    told = os.confstr("CS_GNU_LIBC_VERSION") or "glibc 0.0"
    return tuple(int(number) for number in told.split()[1].split("."))


def _loader(directory: Path, libc: Path) -> tuple[str, ...]:
    libraries = libc / _LIBRARIES
    search = f"{directory}:{libraries}"
    return (str(libraries / "ld-linux-x86-64.so.2"), "--library-path", search)


def layout_check() -> str:
    """C that compiles only if machine.h and machine.py have the same structures."""
    lines = []
    for name, struct in STRUCTS.items():
        rows = [(f"sizeof(struct {name})", ctypes.sizeof(struct))]
        rows += [
            (f"offsetof(struct {name}, {field[0]})", getattr(struct, field[0]).offset)
            for field in struct._fields_
        ]
        lines += [f'_Static_assert({is_} == {value}, "{is_}");' for is_, value in rows]
    return "\n".join(lines) + "\n"
