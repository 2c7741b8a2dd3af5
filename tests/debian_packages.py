"""Debian packages that tests read from, fetched with apt-get and never installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

CACHE = Path(__file__).parents[1] / ".cache"

_FETCH_SECONDS = 90


class PackageUnavailableError(RuntimeError):
    """The package could not be fetched."""


def unpacked(package: str) -> Path:
    """The directory of the unpacked package, fetched where it is not there yet."""
    directory = CACHE / package
    if directory.is_dir():
        return directory
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PackageUnavailableError(f"{package}: needs apt-get and dpkg-deb to fetch it")
    CACHE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
        _run(["apt-get", "-q", "download", package], cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        tree = Path(scratch) / "tree"
        _run(["dpkg-deb", "-x", str(archive), str(tree)], cwd=scratch)
        try:
            tree.rename(directory)
        except OSError:
            # Another test process was faster.
            if not directory.is_dir():
                raise
    return directory


def _run(command: list[str], cwd: str) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise PackageUnavailableError(f"{' '.join(command)}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailableError(f"{' '.join(command)}: {error}") from error
