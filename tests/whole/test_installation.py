"""The installed package, in a project with folders of the same names as ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.once import once
from tests.xen.wheel import wheel

LIBRARY = """
import helper, ipc_schema, toolstack
assert (helper.OWNER, ipc_schema.OWNER, toolstack.OWNER) == ("project",) * 3
from xen_save_helper.toolstack import Context, domain_suspend
Context.open(f"sim:{sys.argv[1]}")
"""

TESTS = """
import toolstack
from xen_save_helper.toolstack import Context

def test_both(xen_save_helper):
    assert toolstack.OWNER == "project"
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel installed."""

    def install(directory: Path) -> None:
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
        subprocess.run([*command, str(directory), str(wheel())], check=True, timeout=120)

    return once(tmp_path_factory, "site", install)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("helper", "ipc_schema", "toolstack"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text('OWNER = "project"\n')
    return tmp_path


def run(installed: Path, project: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}:{installed}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_one_package_and_nothing_beside_it(installed: Path) -> None:
    packages = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    # With --target, what belongs below a prefix is here, too.
    assert packages == {"xen_save_helper", "bin", "share"}


def test_the_commands(installed: Path, project: Path) -> None:
    command = str(installed / "bin" / "xen-toolstack")
    shown = run(installed, project, command, "--version")
    assert shown.startswith("xen-toolstack ")
    demo = ("demo", "--memory", "8M", "--json")
    assert '"memory_ok": true' in run(installed, project, command, *demo)


def test_the_library(installed: Path, project: Path) -> None:
    run(installed, project, "-m", "xen_save_helper.toolstack.commands.main", "init", "h")
    run(installed, project, "-c", "import sys\n" + LIBRARY, "h")


def test_the_pytest_plugin(installed: Path, project: Path) -> None:
    (project / "test_it.py").write_text(TESTS)
    run(installed, project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py")
