"""dom0 images: Debian with Xen in an ext4 file, and what QEMU's multiboot loader needs beside it.

An image is made once and kept in `cache.CACHE`, under a name that holds the hash of its recipe:
whoever changes the recipe gets a new image. Our package is not in it (see `tests.xen.wheel`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.xen import host_tools
from tests.xen.cache import CACHE, exclusive, scratch

INIT: Final = Path(__file__).with_name("dom0") / "rig-init"
"""What the kernel starts in dom0; all the rest comes over 9p at boot."""

_COMMON: Final = (
    *("linux-image-amd64", "kmod", "procps", "psmisc", "iproute2"),
    *("xenstore-utils", "qemu-system-xen", "seabios"),
    *("python3", "python3-pip"),
    *("python3-zmq", "python3-msgpack", "python3-construct", "python3-numpy", "python3-rich"),
)
_LIBVIRT: Final = ("libvirt-daemon", "libvirt-daemon-driver-xen", "libvirt-clients")
_LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_IMAGE_SIZE: Final = "3G"
_BUILD_SECONDS: Final = 900
_CONTAINED: Final = (
    *("setpriv", "--pdeathsig", "KILL"),
    *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
)
"""mmdebstrap mounts /proc and /sys in its tree, and whoever kills it kills what would unmount them.
In namespaces of its own its processes and mounts end with it, and it ends with us."""


@dataclass(frozen=True)
class Suite:
    """A Debian release and the Xen in it; `more` packages than all have."""

    name: str
    xen: str
    more: tuple[str, ...] = ()

    @property
    def packages(self) -> list[str]:
        return [*_COMMON, *self.more, f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}"]


SUITES: Final = {
    "bookworm": Suite("bookworm", "4.17", _LIBVIRT),
    "trixie": Suite("trixie", "4.20"),
}


@dataclass(frozen=True)
class Image:
    """A directory with `root.img`, `vmlinuz`, `initrd.img` and `xen`."""

    suite: Suite
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.img"

    @property
    def kernel(self) -> Path:
        return self.directory / "vmlinuz"

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def xen(self) -> Path:
        """Debian's hypervisor, unpacked."""
        return self.directory / "xen"


def image(suite: Suite) -> Image:
    """The suite's image, made now (one to three minutes, as root) where there is none.

    Raises host_tools.MissingToolsError, subprocess.CalledProcessError.
    """
    recipe = json.dumps([suite.packages, _LEFT_OUT, _IMAGE_SIZE, INIT.read_text()])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    directory = CACHE / f"{suite.name}-{key}"
    if not directory.is_dir():
        with exclusive(suite.name):
            if not directory.is_dir():
                _build(suite, directory)
    return Image(suite, directory)


def _build(suite: Suite, directory: Path) -> None:
    host_tools.need("mmdebstrap", "mke2fs")
    host_tools.need_root("mmdebstrap makes the image's device nodes and owners")
    print(f"tests.xen: making the dom0 image of {suite.name} (once)", flush=True)
    with scratch(suite.name) as parts:
        tree, made = parts / "tree", parts / "image"
        made.mkdir()
        _run([*_CONTAINED, "mmdebstrap", *_mmdebstrap_options(suite), suite.name, str(tree)])
        shutil.copy(INIT, tree / "sbin" / "rig-init")
        (tree / "sbin" / "rig-init").chmod(0o755)
        (tree / "host").mkdir()
        boot = tree / "boot"
        shutil.copy(_only(boot, "vmlinuz-*"), made / "vmlinuz")
        shutil.copy(_only(boot, "initrd.img-*"), made / "initrd.img")
        with gzip.open(_only(boot, f"xen-{suite.xen}-amd64.gz")) as packed:
            (made / "xen").write_bytes(packed.read())
        filesystem = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(made / "root.img")]
        _run([*filesystem, _IMAGE_SIZE])
        made.rename(directory)
    for old in CACHE.glob(f"{suite.name}-????????????"):
        if old != directory:
            # A running QEMU keeps the files that it has open.
            shutil.rmtree(old)


def _mmdebstrap_options(suite: Suite) -> list[str]:
    options = ["--quiet", "--variant=minbase", "--mode=root", "--format=directory"]
    options += [f"--include={','.join(suite.packages)}"]
    options += [f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT]
    options += [f"--aptopt={line}" for line in host_tools.apt_fetch_settings()]
    return options


def _only(directory: Path, pattern: str) -> Path:
    found = list(directory.glob(pattern))
    if len(found) != 1:
        raise FileNotFoundError(f"{directory}/{pattern}: {len(found)} files, want one")
    return found[0]


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=_BUILD_SECONDS)
