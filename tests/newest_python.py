"""Run tests on Debian's newest Python: `python -m tests.newest_python [arguments of pytest]`.

Debian unstable's Python lives in a tree of its own, made once, with our wheel and its dependencies
in an environment there; this machine's Python is not used. Needs root and mmdebstrap.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.xen import host_tools
from tests.xen.cache import CACHE, exclusive, scratch
from tests.xen.wheel import copy_sources, wheel

_NAME: Final = "newest-python"
_SUITE: Final = "sid"
_SECONDS: Final = 900
_SOURCES: Final = ("pyproject.toml", "README.md", "tests")
_RUN: Final = """\
set -e
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
exec chroot "$0" /bin/sh -c '
    set -e
    cd /source
    python3 -m venv --clear /environment
    /environment/bin/pip install -q --no-index --find-links /wheels "xen-save-helper[dev]"
    exec /environment/bin/python -m pytest "$@"
' pytest "$@"
"""


def main(words: list[str]) -> int:
    """Returns pytest's exit code."""
    tree = CACHE / _NAME
    with exclusive(_NAME):
        if not tree.is_dir():
            _make(tree)
        version = subprocess.run(
            ["chroot", str(tree), "python3", "--version"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()[1]
        print(f"tests.newest_python: Python {version}", flush=True)
        _bring_wheels(tree / "wheels", version)
        shutil.rmtree(tree / "source", ignore_errors=True)
        copy_sources(_SOURCES, tree / "source")
        command = [*host_tools.CONTAINED, "sh", "-c", _RUN, str(tree), *words]
        return subprocess.run(command, check=False).returncode


def _make(tree: Path) -> None:
    host_tools.need("mmdebstrap")
    host_tools.need_root("only root can make and enter the tree of the other Python")
    options = ["--quiet", "--variant=minbase", "--mode=root", "--format=directory"]
    options += ["--include=python3,python3-venv"]
    # Unstable's lists may have expired.
    settings = [*host_tools.apt_fetch_settings(), 'Acquire::Check-Valid-Until "false";']
    options += [f"--aptopt={line}" for line in settings]
    with scratch(_NAME) as parts:
        made = parts / "tree"
        command = [*host_tools.CONTAINED, "mmdebstrap", *options, _SUITE, str(made)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, timeout=_SECONDS)
        made.rename(tree)


def _bring_wheels(directory: Path, version: str) -> None:
    """Fetch our wheel and its dependencies, with this machine's pip, which knows where from."""
    shutil.rmtree(directory, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary=:all:"]
    command += ["--python-version", version, "-d", str(directory), f"{wheel()}[dev]"]
    subprocess.run(command, check=True, timeout=_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
