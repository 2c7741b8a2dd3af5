"""Builds a Xen with shadow paging and memory paging, which Debian's lacks.

Only these options of the release's source package are changed: a PV guest's dirty pages can only be
logged with shadow paging. Only the hypervisor is built; the image's tools work with any of the
release.

Where Debian's archive does not have the source package, SOURCES_VARIABLE names a directory with
Xen's own sources, a tree for each release: `4.20/xen/Makefile`, say. What is there is taken in
place of the package.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from tests.xen import host_tools
from tests.xen.cache import CACHE, exclusive, scratch
from tests.xen.images import Suite
from tests.xen.wheel import digest

SOURCES_VARIABLE: Final = "XEN_SOURCES"
_OPTIONS: Final = ("CONFIG_UNSUPPORTED=y", "CONFIG_SHADOW_PAGING=y", "CONFIG_MEM_PAGING=y")
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_BUILD_SECONDS: Final = 3600


def shadow_xen(suite: Suite) -> Path:
    """The hypervisor as QEMU boots it, built now (in one to two minutes) if there is none. Raises
    host_tools.MissingToolsError, subprocess.CalledProcessError."""
    tree = _own_tree(suite)
    own = () if tree is None else (digest(tree / "xen"),)
    recipe = "\n".join((suite.name, suite.xen, *_OPTIONS, *own))
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    kept = CACHE / f"shadow-xen-{suite.name}-{key}"
    if not kept.exists():
        name = f"shadow-xen-{suite.name}"
        with exclusive(name):
            if not kept.exists():
                with scratch(name) as parts:
                    _build(suite, tree, parts, kept)
    return kept


def _own_tree(suite: Suite) -> Path | None:
    """The release's sources in the directory of SOURCES_VARIABLE, None if that is not set or has
    none of this release. Raises host_tools.MissingToolsError if there is no such directory."""
    directory = os.environ.get(SOURCES_VARIABLE)
    if not directory:
        return None
    if not Path(directory).is_dir():
        raise host_tools.MissingToolsError(f"{SOURCES_VARIABLE}: {directory} is not a directory")
    tree = Path(directory, suite.xen)
    return tree if (tree / "xen" / "Makefile").is_file() else None


def _build(suite: Suite, tree: Path | None, parts: Path, kept: Path) -> None:
    host_tools.need_to_build()
    origin = "Debian's source package" if tree is None else tree
    print(
        f"tests.xen: building Xen {suite.xen} with shadow paging from {origin} (once)", flush=True
    )
    if tree is None:
        source = _source(suite, parts)
    else:
        own = shutil.ignore_patterns(".git")
        source = shutil.copytree(tree, parts / "xen", symlinks=True, ignore=own) / "xen"
    (source / ".config").write_text("".join(f"{option}\n" for option in _OPTIONS))
    jobs = f"-j{os.cpu_count() or 1}"
    log = parts / "log"
    with open(log, "w") as out:
        for target in (["olddefconfig"], [jobs]):
            done = subprocess.run(
                ["make", "-C", str(source), *target],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=_BUILD_SECONDS,
            )
            if done.returncode:
                print(log.read_text()[-3000:], flush=True)
                done.check_returncode()
    # Moved at the end: what has the name is whole.
    shutil.move(source / "xen", kept)


def _source(suite: Suite, scratch: Path) -> Path:
    """Unpack the source package; returns the hypervisor's part. Raises host_tools.MissingToolsError
    if the archive has none."""
    (scratch / "lists" / "partial").mkdir(parents=True)
    sources = scratch / "sources.list"
    archive = host_tools.debian_archive()
    sources.write_text(f"deb-src [signed-by={_KEYRING}] {archive} {suite.name} main\n")
    apt = ["apt-get", "-qq", "-o", f"Dir::Etc::sourcelist={sources}"]
    apt += ["-o", "Dir::Etc::sourceparts=-", "-o", f"Dir::State::lists={scratch}/lists"]
    apt += ["-o", "APT::Sandbox::User=root"]
    for command in (["update"], ["source", "xen"]):
        done = subprocess.run(
            [*apt, *command],
            cwd=scratch,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_BUILD_SECONDS,
        )
        if done.returncode:
            raise host_tools.MissingToolsError(
                f"no source package of Xen {suite.xen}: apt-get {command[0]} says:\n"
                f"{done.stderr.rstrip()}\n"
                f"{SOURCES_VARIABLE} can name a directory that has the release's sources in "
                f"{suite.xen}/"
            )
    (tree,) = (path for path in scratch.glob("xen-*") if path.is_dir())
    return tree / "xen"
