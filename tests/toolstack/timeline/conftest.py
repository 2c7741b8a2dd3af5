from __future__ import annotations

from pathlib import Path

import pytest

from tests.toolstack.stage import toolstack
from xen_save_helper.toolstack.timeline.files import picture_of
from xen_save_helper.toolstack.timeline.operations import find_operations
from xen_save_helper.toolstack.timeline.picture import Picture
from xen_save_helper.toolstack.timeline.trace_lines import read_trace


@pytest.fixture(scope="session")
def real_trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of both sides of a postcopy migration of a simulated guest."""
    path = tmp_path_factory.mktemp("trace") / "events"
    options = ("--mode", "postcopy", "--memory", "4M", "--bandwidth", "16M")
    ended = toolstack("demo", *options, "--events", path)
    assert ended.code == 0, ended.err
    return path


@pytest.fixture(scope="session")
def real_picture(real_trace: Path) -> Picture:
    file = read_trace(real_trace)
    (operation,) = find_operations([file])
    return picture_of([file], operation)
