"""The guest's whole system: busybox, an init that counts, and a program that writes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from tests.xen import host_tools

INIT: Final = Path(__file__).with_name("guest-init")
_WRITER: Final = Path(__file__).with_name("touch-pages.c")
_APPLETS: Final = ("sh", "mount", "dd", "md5sum", "sleep", "cat", "poweroff")


def build(target: Path) -> None:
    """Write the guest's initramfs to `target`. Raises host_tools.MissingToolsError if there is no
    statically linked busybox, or no compiler."""
    host_tools.need("busybox", "cpio", "gcc")
    busybox = Path(shutil.which("busybox") or "")
    if b"/ld-linux" in busybox.read_bytes():
        raise host_tools.MissingToolsError(
            f"{busybox} is linked dynamically: apt-get install busybox-static"
        )
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch)
        for name in ("bin", "dev", "proc", "sys", "data"):
            (tree / name).mkdir()
        shutil.copy(busybox, tree / "bin" / "busybox")
        writer = tree / "bin" / _WRITER.stem
        compiler = ["gcc", "-static", "-O2", "-s", "-o", writer, _WRITER]
        subprocess.run(compiler, check=True, timeout=60)
        for name in _APPLETS:
            (tree / "bin" / name).symlink_to("busybox")
        shutil.copy(INIT, tree / "init")
        (tree / "init").chmod(0o755)
        names = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        with open(target, "wb") as out:
            subprocess.run(
                ["cpio", "-o", "-H", "newc", "--quiet", "-R", "0:0"],
                cwd=tree,
                input=f"{names}\n".encode(),
                stdout=out,
                check=True,
                timeout=60,
            )
