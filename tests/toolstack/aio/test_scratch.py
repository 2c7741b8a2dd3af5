"""Temporary directories that disappear with their process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import processes_under
from tests.waiting import wait_for
from xen_save_helper.toolstack.aio.scratch import ScratchDirectory, sweep

pytestmark = pytest.mark.usefixtures("no_leaks")


PREFIX = "ours-"


def test_only_its_owner_can_enter(tmp_path: Path) -> None:
    scratch = ScratchDirectory(PREFIX, tmp_path)
    assert list(tmp_path.iterdir()) == [scratch.path]
    assert stat.S_IMODE(scratch.path.stat().st_mode) == 0o700
    scratch.remove()
    scratch.remove()
    assert list(tmp_path.iterdir()) == []


def test_the_next_process_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, pathlib\n"
        "from xen_save_helper.toolstack.aio.scratch import ScratchDirectory\n"
        "(ScratchDirectory('ours-', pathlib.Path(sys.argv[1])).path / 'file').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    assert os.listdir(left) == ["file"]
    cleared: list[Path] = []
    with ScratchDirectory(PREFIX, tmp_path, cleared.append) as scratch:
        assert cleared == [left]
        assert list(tmp_path.iterdir()) == [scratch.path]


def test_directories_in_use_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / "other").mkdir()
    with ScratchDirectory(PREFIX, tmp_path):
        sweep(PREFIX, tmp_path)
        assert len(list(tmp_path.iterdir())) == 3


def test_many_at_once_leave_each_other_alone(tmp_path: Path) -> None:
    def make(_number: int) -> bool:
        with ScratchDirectory(PREFIX, tmp_path) as scratch:
            return scratch.path.is_dir()

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(make, range(400)))
    assert list(tmp_path.iterdir()) == []


def test_the_next_demo_ends_the_guests_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    command = [
        sys.executable,
        "-m",
        "xen_save_helper.toolstack.commands.main",
        "demo",
        "--memory",
        "8M",
        "--json",
    ]
    with subprocess.Popen(
        [*command, "--bandwidth", "1M"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as killed:
        wait_for(lambda: any(tmp_path.rglob("domains/*/config.json")), "a guest")
        killed.kill()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert [name for name in left if not name.startswith("xen-toolstack-events-")] == []
    assert processes_under(tmp_path) == []
