"""The wheel's build, with the oldest tools that it names, and with those of Debian 12 alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from tests.xen.cache import REPOSITORY
from tests.xen.wheel import SOURCES, copy_sources
from xen_save_helper.toolstack.commands.parser.shell import SHELLS
from xen_save_helper.toolstack.commands.shell.places import COMPLETIONS, MANUAL

DEBIAN_12 = ("setuptools==66.1.1", "wheel==0.38.4", "shtab==1.5.5", "argparse-manpage==1.2.2")
"""python3-setuptools, python3-wheel, python3-shtab and python3-argparse-manpage."""

DEFINITIONS = {
    "bash": "_xen_toolstack_guests() {",
    "zsh": "_xen_toolstack_guests() {",
    "fish": "function __xen_toolstack_guests",
}


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    copy_sources(SOURCES, tmp_path / "sources")
    return tmp_path / "sources"


def pip(python: Path | str, *arguments: object, **environment: str) -> tuple[int, str]:
    """Its exit status, and all that it says."""
    done = subprocess.run(
        [python, "-m", "pip", *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, done.stdout


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_oldest_tools_that_it_names_will_do(sources: Path, tmp_path: Path) -> None:
    requires = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["build-system"][
        "requires"
    ]
    oldest = [one.replace(">=", "==") for one in requires if not one.startswith("setuptools")]
    pinned = tmp_path / "constraints.txt"
    pinned.write_text("\n".join([*oldest, *DEBIAN_12[:2]]))
    status, said = pip(
        sys.executable, "wheel", "--no-deps", "-w", tmp_path, sources, PIP_CONSTRAINT=str(pinned)
    )
    assert status == 0, said
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        files = {
            name.partition(".data/data/")[2]: opened.read(name).decode()
            for name in opened.namelist()
            if ".data/data/" in name
        }
    for program in ("xen-toolstack", "xen-save-helper"):
        wanted = {place.format(program) for shell in SHELLS for place in COMPLETIONS[shell]}
        assert {*wanted, MANUAL.format(program)} <= files.keys()
    # Older ones than those build as well, but leave out the functions that complete names.
    for shell, function in DEFINITIONS.items():
        assert function in files[COMPLETIONS[shell][0].format("xen-toolstack")]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_with_debian_12s_tools_it_says_which_are_too_old(sources: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    status, said = pip(python, "install", "-q", *DEBIAN_12)
    assert status == 0, said
    status, said = pip(
        python, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, sources
    )
    assert status != 0
    (line,) = (line.strip() for line in said.splitlines() if "error: completion" in line)
    assert "argparse-manpage>=4.4 (this is 1.2.2), shtab>=1.10 (this is 1.5.5)" in line
    assert line.endswith("pip gets them by itself, without --no-build-isolation")
    assert "Traceback" not in said
    status, said = pip(python, "uninstall", "-q", "-y", "shtab")
    assert status == 0, said
    status, said = pip(
        python, "wheel", "--no-build-isolation", "--no-deps", "-w", tmp_path, sources
    )
    assert status != 0
    assert "shtab>=1.10 (there is none)" in said
