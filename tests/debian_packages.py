"""Debian packages for tests to read, fetched with apt-get and never installed."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.xen.host_tools import MissingToolsError, debian_archive

CACHE = Path(__file__).parents[1] / ".cache"

_FETCH_SECONDS = 90
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class PackageUnavailableError(RuntimeError):
    """The package could not be fetched."""


def unpacked(package: str) -> Path:
    """The directory of the unpacked package, fetched if it is not there yet."""
    directory = CACHE / package
    if not directory.is_dir():
        _need_apt(package)
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            _fetch(package, directory, scratch)
    return directory


def unpacked_from(suite: str, *packages: str) -> list[Path]:
    """The directories of unpacked packages of another Debian release. Those that are missing are
    fetched, with that release's list of packages, by one process at a time."""
    directories = {package: CACHE / suite / package for package in packages}
    if not all(directory.is_dir() for directory in directories.values()):
        _need_apt(packages[0])
        (CACHE / suite).mkdir(parents=True, exist_ok=True)
        with (CACHE / suite / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            missing = {name: where for name, where in directories.items() if not where.is_dir()}
            if missing:
                _fetch_from(suite, missing)
    return list(directories.values())


def _fetch_from(suite: str, missing: Mapping[str, Path]) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE / suite) as scratch:
        options = _apt_of(suite, Path(scratch))
        _run(["apt-get", "-q", *options, "update"], cwd=scratch)
        for package, directory in missing.items():
            _fetch(package, directory, scratch, options)


def _need_apt(package: str) -> None:
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise PackageUnavailableError(f"{package}: needs apt-get and dpkg-deb to fetch it")


def _apt_of(suite: str, scratch: Path) -> list[str]:
    try:
        archive = debian_archive()
    except MissingToolsError as missing:
        raise PackageUnavailableError(str(missing)) from missing
    (scratch / "lists" / "partial").mkdir(parents=True)
    (scratch / "cache" / "archives" / "partial").mkdir(parents=True)
    sources = scratch / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] {archive} {suite} main\n")
    settings = [
        f"Dir::Etc::sourcelist={sources}",
        "Dir::Etc::sourceparts=-",
        f"Dir::State::lists={scratch}/lists",
        f"Dir::Cache={scratch}/cache",
        "APT::Sandbox::User=root",
        "Acquire::Languages=none",
    ]
    return [word for setting in settings for word in ("-o", setting)]


def _fetch(package: str, directory: Path, scratch: str, options: Sequence[str] = ()) -> None:
    _run(["apt-get", "-q", *options, "download", package], cwd=scratch)
    (archive,) = Path(scratch).glob(f"{package}_*.deb")
    tree = Path(scratch) / package
    _run(["dpkg-deb", "-x", str(archive), str(tree)], cwd=scratch)
    try:
        tree.rename(directory)
    except OSError:
        # Another test process was faster.
        if not directory.is_dir():
            raise


def _run(command: list[str], cwd: str) -> None:
    try:
        subprocess.run(
            command, cwd=cwd, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
        )
    except subprocess.CalledProcessError as error:
        raise PackageUnavailableError(f"{' '.join(command)}: {error.stderr.strip()}") from error
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailableError(f"{' '.join(command)}: {error}") from error
