"""The example programs do what they say they do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SAID = {
    "save_and_restore": "web runs at its destination, memory as it was: True\n",
    "own_policy": "calm went by precopy\nbusy went by postcopy\n",
}
"""What each program prints. Tests that are examples are collected by themselves."""

HERE = Path(__file__).parent


def run(path: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    """As a user does, in a directory of his own."""
    return subprocess.run(
        [sys.executable, "-W", "error", path],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


@pytest.mark.parametrize("name", SAID)
def test_a_program_does_what_it_says(name: str, tmp_path: Path) -> None:
    ended = run(HERE / f"{name}.py", tmp_path)
    assert (ended.returncode, ended.stdout) == (0, SAID[name]), ended.stderr
    assert ended.stderr == ""


def test_all_of_them_are_run() -> None:
    programs = {path.stem for path in HERE.glob("*.py")}
    assert programs - {"__init__", "test_programs", "test_failure_path"} == set(SAID)
