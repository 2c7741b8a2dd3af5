"""Where a helper finds its controller, and that nothing of a dead one stays there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from toolstack.endpoint import Endpoint, sweep

pytestmark = pytest.mark.usefixtures("no_leaks")


@pytest.fixture(autouse=True)
def parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_only_its_owner_can_enter(parent: Path) -> None:
    endpoint = Endpoint()
    (directory,) = parent.iterdir()
    assert endpoint.uri.startswith(f"ipc://{directory}/")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    endpoint.remove()
    endpoint.remove()
    assert list(parent.iterdir()) == []


def test_what_a_killed_controller_left_goes_with_the_next(parent: Path) -> None:
    script = (
        "import os, signal, pathlib; from toolstack.endpoint import Endpoint\n"
        "e = Endpoint(); pathlib.Path(e.uri.removeprefix('ipc://')).touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", script], check=False)
    (left,) = parent.iterdir()
    assert os.listdir(left) == ["controller"]
    endpoint = Endpoint()
    (directory,) = parent.iterdir()
    assert directory != left
    endpoint.remove()


def test_one_in_use_and_a_strangers_things_stay(parent: Path) -> None:
    (parent / "xen-save-helper-file").touch()
    (parent / "other").mkdir()
    endpoint = Endpoint()
    sweep()
    assert len(list(parent.iterdir())) == 3
    endpoint.remove()


def test_many_at_once_leave_each_other_alone(parent: Path) -> None:
    def make(_number: int) -> bool:
        endpoint = Endpoint()
        there = Path(endpoint.uri.removeprefix("ipc://")).parent.is_dir()
        endpoint.remove()
        return there

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(make, range(400)))
    assert list(parent.iterdir()) == []
