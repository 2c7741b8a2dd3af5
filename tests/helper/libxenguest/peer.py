"""Builds `xen_peer.c`, the C library in place of Xen's, for each release."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.debian_packages import unpacked

SOURCE = Path(__file__).parent / "xen_peer.c"

HEADERS = "libxen-dev"
"""Debian's package of Xen's headers."""
HEADERS_OF = "4.17"
"""The release of bookworm's headers."""


def compiled(source: Path, output: Path, *options: str | Path) -> Path:
    """Compile `source`; the compiler's errors fail the test."""
    subprocess.run(
        ["gcc", "-Wall", "-Werror", source, "-o", output, *options], check=True, timeout=60
    )
    return output


def with_xens_headers() -> tuple[str | Path, ...]:
    """Compiler options. Raises PackageUnavailableError without the headers."""
    return ("-DXEN_HEADERS", "-isystem", unpacked(HEADERS) / "usr" / "include")


def libraries(directory: Path, version: str, *options: str | Path) -> Path:
    """`directory` with libxenctrl and libxenguest of `version`, for LD_LIBRARY_PATH."""
    directory.mkdir()
    major, minor = version.split(".")
    common = (f"-DXEN_RELEASE={int(major) * 100 + int(minor)}", "-shared", "-fPIC", *options)
    control = directory / f"libxenctrl.so.{version}"
    compiled(SOURCE, control, f"-Wl,-soname,{control.name}", *common)
    guest = directory / f"libxenguest.so.{version}"
    linked = ("-Wl,--no-as-needed", control, "-Wl,-rpath,$ORIGIN")
    compiled(SOURCE, guest, f"-Wl,-soname,{guest.name}", "-DPEER_GUEST", *common, *linked)
    return directory
