"""The directory that the host shares with dom0; `tests.xen.dom0.agent` has its layout."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.xen import guest_ramdisk
from tests.xen.cache import REPOSITORY


def make(share: Path) -> None:
    """Make the directory, with the rig's code and the guests' ramdisk. Raises
    host_tools.MissingToolsError."""
    for name in ("rig/tests", "requests", "results"):
        (share / name).mkdir(parents=True)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copy(REPOSITORY / "tests" / "__init__.py", share / "rig" / "tests")
    shutil.copytree(REPOSITORY / "tests" / "xen", share / "rig" / "tests" / "xen", ignore=ignored)
    guest_ramdisk.build(share / "rig" / "guest.cpio")
