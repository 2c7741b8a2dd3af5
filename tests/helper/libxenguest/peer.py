"""Builds `xen_peer.c`, the C library in the place of Xen's, with Xen's own headers."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.debian_packages import unpacked

SOURCE = Path(__file__).parent / "xen_peer.c"

HEADERS = "libxen-dev"
"""Debian's package of them; bookworm's is of Xen 4.17."""


def compiled(source: Path, output: Path, *options: str) -> Path:
    """Raises PackageUnavailableError without the headers; the compiler's errors are the test's."""
    include = unpacked(HEADERS) / "usr" / "include"
    subprocess.run(
        ["gcc", "-Wall", "-Werror", "-isystem", include, source, "-o", output, *options],
        check=True,
        timeout=60,
    )
    return output


def libraries(directory: Path, version: str) -> Path:
    """`directory` with libxenctrl and libxenguest of `version`, for LD_LIBRARY_PATH."""
    directory.mkdir()
    for name in ("libxenctrl", "libxenguest"):
        soname = f"{name}.so.{version}"
        options = ("-shared", "-fPIC", f"-Wl,-soname,{soname}")
        compiled(SOURCE, directory / soname, *options)
    return directory
