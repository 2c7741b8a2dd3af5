"""Xen's own verify-stream-v2, out of Debian's package xen-utils-4.17, which is never installed.

It is written in Python and needs only the package's `xen.util` and `xen.migration`. Under
Python 3 it takes no EMULATOR_XENSTORE_DATA record with anything in it: it compares an octet with
a string, and says that the data has no NUL at its end. It knows no postcopy records.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = "xen-utils-4.17"
CACHE = Path(__file__).parents[1] / ".cache"

_TREE = Path("usr/lib/xen-4.17")
_FETCH_SECONDS = 90
_RUN_SECONDS = 60


class VerifierUnavailableError(RuntimeError):
    """The package could not be fetched."""


def fetch() -> Path:
    """The directory of the unpacked package, fetched with apt-get where it is not there yet."""
    unpacked = CACHE / PACKAGE
    if unpacked.is_dir():
        return unpacked
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise VerifierUnavailableError(f"{PACKAGE}: needs apt-get and dpkg-deb to fetch it")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _run(["apt-get", "-q", "download", PACKAGE], cwd=scratch)
        (package,) = Path(scratch).glob("*.deb")
        tree = Path(scratch) / "tree"
        _run(["dpkg-deb", "-x", str(package), str(tree)], cwd=scratch)
        try:
            tree.rename(unpacked)
        except OSError:
            # Another test process was faster.
            if not unpacked.is_dir():
                raise
    return unpacked


def verify(stream: Path, layer: str) -> subprocess.CompletedProcess[str]:
    """Run it on `stream`, which begins as `layer` does: `xl`, `libxl` or `libxc`.

    returncode 0: accepted; else stderr says why not. stdout names the records.
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


def _run(command: list[str], cwd: str) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise VerifierUnavailableError(f"{' '.join(command)}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise VerifierUnavailableError(f"{' '.join(command)}: {error}") from error
