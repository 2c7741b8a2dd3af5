"""dom0 images: Debian with Xen in an ext4 file, and what QEMU's multiboot loader needs beside it.

Debian's kernel is unpacked here, once, by this computer's own processor: the emulated one would do
it at each boot and in each `xl create`, which then takes five seconds instead of one.

An image is made once and kept in `cache.CACHE`, under a name with the hash of its recipe: another
recipe makes a new image. Our package is not in it (see `tests.xen.wheel`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.xen import host_tools
from tests.xen.cache import CACHE, exclusive, scratch

INIT: Final = Path(__file__).with_name("dom0") / "rig-init"
"""The init of dom0; everything else comes over 9p at boot."""

_COMMON: Final = (
    *("linux-image-amd64", "kmod", "procps", "psmisc", "iproute2"),
    *("xenstore-utils", "qemu-system-xen", "seabios"),
    *("python3", "python3-pip"),
    *("python3-zmq", "python3-msgpack", "python3-construct", "python3-numpy", "python3-rich"),
)
_LIBVIRT: Final = ("libvirt-daemon", "libvirt-daemon-driver-xen", "libvirt-clients")
_INITRAMFS_TOOLS: Final = ("initramfs-tools",)
"""Replaces dracut, which puts systemd into the initrd: starting that takes the emulated processor a
minute."""
_LEFT_OUT: Final = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
_INITRD_SETTINGS: Final = {
    "etc/initramfs-tools/conf.d/rig": "MODULES=list\n",
    "usr/share/initramfs-tools/modules.d/rig": "virtio_pci\nvirtio_blk\next4\n",
}
"""Only the modules that find the root: the emulated processor would have to unpack all others at
each boot."""
_KERNEL: Final = "vmlinux"
_IMAGE_SIZE: Final = "3G"
_SETUP_SECTORS: Final = 0x1F1
_PAYLOAD: Final = 0x248
"""Offsets of `setup_sects`, and of `payload_offset` and `payload_length`, in a bzImage."""
_BUILD_SECONDS: Final = 900


@dataclass(frozen=True)
class Suite:
    """A Debian release and its Xen; `more` are packages besides the common ones. `rolling`: its
    contents change from day to day, so it is used only if asked for. `guests` are the kinds of
    guest that its machines keep."""

    name: str
    xen: str
    more: tuple[str, ...] = ()
    rolling: bool = False
    guests: tuple[str, ...] = ("pv", "pvh", "hvm")

    @property
    def packages(self) -> list[str]:
        return [*_COMMON, *self.more, f"xen-hypervisor-{self.xen}-amd64", f"xen-utils-{self.xen}"]


SUITES: Final = {
    "bookworm": Suite("bookworm", "4.17", _LIBVIRT),
    "trixie": Suite("trixie", "4.20"),
    "sid": Suite("sid", "4.20", _INITRAMFS_TOOLS, rolling=True, guests=()),
}

ORDINARY: Final = tuple(name for name, suite in SUITES.items() if not suite.rolling)
"""The suites to run by default."""


@dataclass(frozen=True)
class Image:
    """A directory with `root.img`, `vmlinux`, `initrd.img` and `xen`."""

    suite: Suite
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root.img"

    @property
    def kernel(self) -> Path:
        """The unpacked kernel, from Debian's package."""
        return self.directory / _KERNEL

    @property
    def initrd(self) -> Path:
        return self.directory / "initrd.img"

    @property
    def xen(self) -> Path:
        """The unpacked hypervisor, from Debian's package."""
        return self.directory / "xen"


def image(suite: Suite) -> Image:
    """The suite's image, made now (in one to three minutes, as root) if there is none.

    Raises host_tools.MissingToolsError, subprocess.CalledProcessError, and ValueError for a kernel
    that cannot be unpacked.
    """
    options = [suite.packages, _LEFT_OUT, _INITRD_SETTINGS, _KERNEL, _IMAGE_SIZE]
    recipe = json.dumps([*options, INIT.read_text()])
    key = hashlib.sha256(recipe.encode()).hexdigest()[:12]
    directory = CACHE / f"{suite.name}-{key}"
    if not directory.is_dir():
        with exclusive(suite.name):
            if not directory.is_dir():
                _build(suite, directory)
    return Image(suite, directory)


def _build(suite: Suite, directory: Path) -> None:
    host_tools.need("mmdebstrap", "mke2fs", "zstd")
    host_tools.need_root("mmdebstrap makes the image's device nodes and owners")
    print(f"tests.xen: making the dom0 image of {suite.name} (once)", flush=True)
    with scratch(suite.name) as parts:
        tree, made, settings = parts / "tree", parts / "image", parts / "settings"
        made.mkdir()
        for name, text in _INITRD_SETTINGS.items():
            (settings / name).parent.mkdir(parents=True)
            (settings / name).write_text(text)
        options = _mmdebstrap_options(suite, settings)
        _run([*host_tools.CONTAINED, "mmdebstrap", *options, suite.name, str(tree)])
        shutil.copy(INIT, tree / "sbin" / "rig-init")
        (tree / "sbin" / "rig-init").chmod(0o755)
        (tree / "host").mkdir()
        boot = tree / "boot"
        bzimage = _only(boot, "vmlinuz-*")
        kernel = boot / bzimage.name.replace("vmlinuz", _KERNEL)
        kernel.write_bytes(unpacked(bzimage.read_bytes()))
        shutil.copy(kernel, made / _KERNEL)
        shutil.copy(_only(boot, "initrd.img-*"), made / "initrd.img")
        with gzip.open(_only(boot, f"xen-{suite.xen}-amd64.gz")) as packed:
            (made / "xen").write_bytes(packed.read())
        filesystem = ["mke2fs", "-q", "-t", "ext4", "-d", str(tree), str(made / "root.img")]
        _run([*filesystem, _IMAGE_SIZE])
        made.rename(directory)
    for old in CACHE.glob(f"{suite.name}-????????????"):
        if old != directory:
            # A running QEMU keeps its open files.
            shutil.rmtree(old)


def unpacked(bzimage: bytes) -> bytes:
    """The ELF image in a bzImage, by Linux's boot protocol: it begins at `payload_offset` after the
    set-up code.

    Raises ValueError if it is not packed as Debian packs it, and subprocess.CalledProcessError if
    zstd finds it damaged.
    """
    start = (bzimage[_SETUP_SECTORS] + 1) * 512
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    payload = bzimage[start + offset :][:length]
    if payload.startswith(b"\xfd7zXZ\0"):
        image = lzma.LZMADecompressor().decompress(payload)
    elif payload.startswith(b"\x28\xb5\x2f\xfd"):
        # The last four bytes are the image's length.
        command = ["zstd", "--decompress", "--stdout", "--quiet"]
        image = subprocess.run(command, input=payload[:-4], check=True, capture_output=True).stdout
    else:
        image = b""
    if not image.startswith(b"\x7fELF"):
        raise ValueError(f"no kernel that this can unpack: {payload[:8]!r}")
    return image


def _mmdebstrap_options(suite: Suite, settings: Path) -> list[str]:
    options = ["--quiet", "--variant=minbase", "--mode=root", "--format=directory"]
    # Before any package is installed: the kernel's makes the initrd.
    options += [f"--setup-hook=copy-in {settings}/etc {settings}/usr /"]
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
