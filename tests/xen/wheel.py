"""Builds our package as a user gets it: a wheel of the checkout in its present state."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tests.xen.cache import CACHE, REPOSITORY, exclusive

SOURCES: Final = (
    "pyproject.toml", "README.md", "LICENSE", ".packages", "ipc_schema", "helper", "toolstack",
)  # fmt: skip
_BUILD_SECONDS: Final = 300
_KEPT: Final = 5


def wheel() -> Path:
    """The checkout's wheel, built now unless one of the same sources is kept. Raises
    subprocess.CalledProcessError."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="wheel-") as scratch:
        # A copy, because the build writes beside the sources and picks up whatever it finds there.
        source = Path(scratch, "source")
        copy_sources(SOURCES, source)
        kept = CACHE / "wheels" / digest(source)
        with exclusive("wheels"):
            if not kept.is_dir():
                _build(source, Path(scratch, "built"), kept)
        (found,) = kept.glob("*.whl")
        return found


def copy_sources(names: Iterable[str], directory: Path) -> None:
    """Copy files and folders of the checkout into a new directory."""
    directory.mkdir()
    for name in names:
        if (REPOSITORY / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(REPOSITORY / name, directory / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(REPOSITORY / name, directory / name)


def digest(tree: Path) -> str:
    """16 hexadecimal digits for all files of a tree, by name and contents."""
    digest = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(tree)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _build(source: Path, built: Path, kept: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(built)]
    subprocess.run([*command, str(source)], check=True, timeout=_BUILD_SECONDS)
    kept.parent.mkdir(exist_ok=True)
    built.rename(kept)
    by_age = sorted(kept.parent.iterdir(), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-_KEPT]:
        shutil.rmtree(old)
