"""The programs that the rig needs on the machine that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

PACKAGES: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "busybox": "busybox-static",
    "cpio": "cpio",
    "zstd": "zstd",
}
"""Debian's package of each program."""

BUILD_PACKAGES: Final = {
    "gcc": "gcc",
    "make": "make",
    "bison": "bison",
    "flex": "flex",
    "dpkg-source": "dpkg-dev",
}
"""What building a hypervisor takes besides, and the library libelf-dev."""

_APT_SETTINGS: Final = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)

CONTAINED: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
)
"""mmdebstrap mounts /proc and /sys in its tree, and whoever kills it kills what would unmount them.
In namespaces of its own its processes and mounts end with it, and it ends with us."""


class MissingToolsError(RuntimeError):
    """Says what to install, or who to be."""


def need(*programs: str) -> None:
    """Raises MissingToolsError where one of `programs` (keys of PACKAGES) is not there."""
    _need({program: PACKAGES[program] for program in programs}, tuple(PACKAGES.values()))


def need_to_build() -> None:
    """Raises MissingToolsError where a hypervisor cannot be built."""
    _need(BUILD_PACKAGES, (*BUILD_PACKAGES.values(), "libelf-dev"))


def _need(packages: Mapping[str, str], install: Sequence[str]) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [packages[program] for program in packages if not shutil.which(program, path=path)]
    if missing:
        raise MissingToolsError(
            f"the real-Xen tests need {' '.join(missing)}: "
            f"apt-get install --no-install-recommends {' '.join(install)}"
        )


def need_root(why: str) -> None:
    """Raises MissingToolsError for anybody else."""
    if os.geteuid() != 0:
        raise MissingToolsError(f"the real-Xen tests must be run as root: {why}")


def apt_fetch_settings() -> list[str]:
    """How this machine's apt is told to fetch (a proxy, a clock that is off), as apt.conf lines,
    for an apt that reads none of its configuration."""
    dump = subprocess.run(
        ["apt-config", "dump", *_APT_SETTINGS], check=True, capture_output=True, text=True
    ).stdout
    return [line for line in dump.splitlines() if not line.endswith('"";')]


def debian_archive() -> str:
    """The URI of the archive from which this machine's apt has Debian's packages; all releases are
    in it. Raises MissingToolsError where its settings name none, or it has fetched no lists yet."""
    targets = ("Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", *targets],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not told:
        raise MissingToolsError(
            "the real-Xen tests need Debian's archive, and this machine's apt knows none: "
            "name it in /etc/apt/sources.list.d, then apt-get update"
        )
    return told[0]
