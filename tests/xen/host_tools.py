"""The programs that the rig needs on the machine that runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Final

PACKAGES: Final = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "busybox": "busybox-static",
    "cpio": "cpio",
}
"""Debian's package of each program."""

_APT_SETTINGS: Final = (
    "Acquire::Check-Valid-Until",
    "Acquire::Check-Date",
    "Acquire::http::Proxy",
    "Acquire::https::Proxy",
)


class MissingToolsError(RuntimeError):
    """Says what to install, or who to be."""


def need(*programs: str) -> None:
    """Raises MissingToolsError where one of `programs` (keys of PACKAGES) is not there."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [PACKAGES[program] for program in programs if not shutil.which(program, path=path)]
    if missing:
        raise MissingToolsError(
            f"the real-Xen tests need {' '.join(missing)}: "
            f"apt-get install --no-install-recommends {' '.join(PACKAGES.values())}"
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
