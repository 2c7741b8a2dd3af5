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
    "gcc": "gcc libc6-dev",
}
"""The Debian package that each program is in."""

BUILD_PACKAGES: Final = {
    "gcc": "gcc",
    "make": "make",
    "bison": "bison",
    "flex": "flex",
    "dpkg-source": "dpkg-dev",
}
"""Debian's packages for building a hypervisor; libelf-dev is needed as well."""

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
"""Namespaces for mmdebstrap, which mounts /proc and /sys in its tree: whoever kills it kills what
would unmount them. With these its processes and mounts end when it does, and it ends when we do."""


class MissingToolsError(RuntimeError):
    """A program or root is missing; the text says what to do."""


def need(*programs: str) -> None:
    """Raise MissingToolsError if one of `programs` (keys of PACKAGES) is missing."""
    _need({program: PACKAGES[program] for program in programs}, tuple(PACKAGES.values()))


def need_to_build() -> None:
    """Raise MissingToolsError if a hypervisor cannot be built."""
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
    """Raise MissingToolsError unless this process runs as root."""
    if os.geteuid() != 0:
        raise MissingToolsError(f"the real-Xen tests must be run as root: {why}")


def apt_fetch_settings() -> list[str]:
    """This machine's settings for downloads (a proxy, a clock that is off) as lines of apt.conf,
    for an apt that does not read them itself."""
    dump = subprocess.run(
        ["apt-config", "dump", *_APT_SETTINGS], check=True, capture_output=True, text=True
    ).stdout
    return [line for line in dump.splitlines() if not line.endswith('"";')]


def debian_archive() -> str:
    """The URI of the Debian archive that this machine's apt uses, which has all releases. Raises
    MissingToolsError if its settings name none, or it has not fetched any lists yet."""
    targets = ("Created-By: Packages", "Origin: Debian", "Label: Debian", "Component: main")
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", *targets],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    if not told:
        raise MissingToolsError(
            "the real-Xen tests need Debian's archive, which this machine's apt does not know: "
            "name it in /etc/apt/sources.list.d, then apt-get update"
        )
    return told[0]
