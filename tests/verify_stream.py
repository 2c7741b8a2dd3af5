"""Runs Xen's own verify-stream-v2 from Debian's package xen-utils-4.17, without installing that.

It is written in Python and needs only the package's `xen.util` and `xen.migration`. Under Python 3
it rejects every EMULATOR_XENSTORE_DATA record that is not empty: it compares a byte with a string,
and says that the data does not end in NUL. It knows no postcopy records.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.debian_packages import unpacked

PACKAGE = "xen-utils-4.17"

_TREE = Path("usr/lib/xen-4.17")
_RUN_SECONDS = 60


def fetch() -> Path:
    """The directory of the unpacked package. Raises PackageUnavailableError."""
    return unpacked(PACKAGE)


def verify(stream: Path, layer: str) -> subprocess.CompletedProcess[str]:
    """Run it on `stream`, which begins as `layer` says: `xl`, `libxl` or `libxc`.

    A returncode of 0 means accepted, else stderr says why not. stdout names the records.
    """
    root = fetch() / _TREE
    program = root / "bin" / "verify-stream-v2"
    return subprocess.run(
        [sys.executable, str(program), "-v", "-f", layer, "-i", str(stream)],
        env={**os.environ, "PYTHONPATH": str(root / "lib" / "python")},
        capture_output=True,
        text=True,
        check=False,
        timeout=_RUN_SECONDS,
    )
